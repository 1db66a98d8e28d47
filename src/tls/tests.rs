use std::{net::SocketAddr, path::PathBuf, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, date_time_ymd,
};
use rustls::pki_types::ServerName;
use tokio::{
    io::AsyncReadExt,
    join,
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use super::{
    pki::{Authority, Leaf, Side},
    *,
};
use crate::telemetry::Chain;

const LIMIT: Duration = Duration::from_secs(20);

fn leaf<'a>(names: &'a [&'a str]) -> Leaf<'a> {
    Leaf {
        names,
        ..Leaf::GOOD
    }
}

/// The files of a side.
pub(crate) fn files(side: &Side) -> TlsFiles {
    let crl = side.path("crl.pem");
    TlsFiles {
        certificate: side.path("cert.pem"),
        key: side.path("key.pem"),
        ca: side.path("ca.pem"),
        crl: crl.is_file().then_some(crl),
    }
}

fn wrong(side: &Side) -> String {
    let text = match Server::read(&files(side)) {
        Ok(_) => panic!("nothing is wrong with it"),
        Err(e) => Chain(&e).to_string(),
    };
    text.replace(&format!("{}/", side.dir.path().display()), "")
}

#[test]
fn what_cannot_be_shown_is_said_at_the_start() {
    let ca = Authority::new("ca");
    let side = Side::new(&ca, &leaf(&["p.example"]), &ca);
    assert!(Server::read(&files(&side)).is_ok());

    let (_, other) = ca.issue(&leaf(&["p.example"]));
    let key = std::fs::read_to_string(side.path("key.pem")).unwrap();
    side.write("key.pem", &other);
    assert!(wrong(&side).starts_with("key.pem: it is the key of another certificate than"));
    side.write("key.pem", "nothing");
    assert_eq!(wrong(&side), "key.pem: no private key in PEM is in it");
    side.write("key.pem", &key);

    let of = |leaf: &Leaf<'_>| {
        side.renew(&ca, leaf);
        wrong(&side)
    };
    let expired = Leaf {
        years: (2019, 2020),
        ..leaf(&["p.example"])
    };
    assert!(of(&expired).starts_with("cert.pem: it has ended on 2020"));
    let early = Leaf {
        years: (2119, 2120),
        ..leaf(&["p.example"])
    };
    assert!(of(&early).starts_with("cert.pem: it is not valid before 2119"));
    let client = Leaf {
        usage: &[ExtendedKeyUsagePurpose::ClientAuth],
        ..leaf(&["p.example"])
    };
    assert!(of(&client).starts_with("cert.pem: it is not for servers (serverAuth)"));
    assert!(of(&leaf(&[])).starts_with("cert.pem: it names no host"));
    side.renew(&ca, &leaf(&["p.example"]));

    side.write("ca.pem", "");
    assert_eq!(wrong(&side), "ca.pem: no certificates in PEM are in it");
    side.write("crl.pem", "");
    std::fs::remove_file(side.path("ca.pem")).unwrap();
    assert!(wrong(&side).starts_with("ca.pem cannot be read"));
}

/// What the server and the client see of a connection with one another.
async fn meet(
    server: &Server,
    client: &Client,
    name: &str,
) -> (Result<CertificateNames, String>, Result<(), String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at: SocketAddr = listener.local_addr().unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        let accepted = TlsAcceptor::from(server.config()).accept(stream).await;
        let stream = accepted.map_err(|e| e.to_string())?;
        Ok(presented(stream.get_ref().1.peer_certificates()))
    };
    let asking = async {
        let stream = TcpStream::connect(at).await.unwrap();
        let connected = TlsConnector::from(client.config())
            .connect(name, stream)
            .await;
        let mut stream = connected.map_err(|e| e.to_string())?;
        // That the server refuses a certificate shows at the first reading.
        match stream.read(&mut [0]).await {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
            Err(e) => Err(e.to_string()),
        }
    };
    timeout(LIMIT, async { join!(serving, asking) })
        .await
        .unwrap()
}

#[tokio::test]
async fn each_side_takes_only_what_its_authority_issued_for_this() {
    let (ca, stranger) = (Authority::new("ca"), Authority::new("stranger"));
    let server = Side::new(&ca, &leaf(&["p.example", "127.0.0.1"]), &ca);
    let read = |side: &Side| Server::read(&files(side)).unwrap();
    let client = |side: &Side| Client::read(&files(side)).unwrap();
    let mine = Side::new(&ca, &leaf(&["LB1.example", "spiffe://fleet/lb1"]), &ca);

    let (server_saw, client_saw) = meet(&read(&server), &client(&mine), "p.example").await;
    let names = CertificateNames::new(["lb1.example", "spiffe://fleet/lb1"]);
    assert_eq!((server_saw, client_saw), (Ok(names), Ok(())));
    let (saw, _) = meet(&read(&server), &client(&mine), "127.0.0.1").await;
    assert!(saw.is_ok(), "an address is a name too: {saw:?}");

    let (_, saw) = meet(&read(&server), &client(&mine), "q.example").await;
    assert!(saw.unwrap_err().contains("not valid for name"));
    let fooled = Side::new(&ca, &leaf(&["lb1.example"]), &stranger);
    let (_, saw) = meet(&read(&server), &client(&fooled), "p.example").await;
    assert!(saw.unwrap_err().contains("UnknownIssuer"));

    let strange = Side::new(&stranger, &leaf(&["lb1.example"]), &ca);
    let (saw, told) = meet(&read(&server), &client(&strange), "p.example").await;
    assert!(saw.unwrap_err().contains("UnknownIssuer"));
    assert!(told.unwrap_err().contains("alert"), "the client is told");

    // It is good when it is read; the server has another clock.
    let for_servers = Leaf {
        usage: &[ExtendedKeyUsagePurpose::ServerAuth],
        ..leaf(&["lb1.example"])
    };
    let (chain, key) = ca.issue(&for_servers);
    let (chain, key) = (pem_chain(&chain), pem_key(&key));
    let forged = Client {
        config: Arc::new(
            ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&TLS13])
                .unwrap()
                .with_root_certificates(roots(&files(&mine)).unwrap())
                .with_client_auth_cert(chain, key)
                .unwrap(),
        ),
        ends: 0,
        lists_end: None,
    };
    let (saw, _) = meet(&read(&server), &forged, "p.example").await;
    assert!(
        saw.unwrap_err().contains("extended key usage"),
        "a server's certificate is no director's"
    );

    let bare = Client {
        config: Arc::new(
            ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&TLS13])
                .unwrap()
                .with_root_certificates(roots(&files(&mine)).unwrap())
                .with_no_client_auth(),
        ),
        ends: 0,
        lists_end: None,
    };
    let (saw, _) = meet(&read(&server), &bare, "p.example").await;
    assert!(
        saw.unwrap_err().contains("no certificates"),
        "who shows none is refused"
    );
}

fn pem_chain(text: &str) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from_pem_slice(text.as_bytes()).unwrap()]
}

fn pem_key(text: &str) -> rustls::pki_types::PrivateKeyDer<'static> {
    rustls::pki_types::PrivateKeyDer::from_pem_slice(text.as_bytes()).unwrap()
}

#[tokio::test]
async fn what_was_revoked_is_refused() {
    let ca = Authority::new("ca");
    let server = Side::new(&ca, &leaf(&["p.example"]), &ca);
    let number = |serial| Leaf {
        serial,
        ..leaf(&["lb1.example"])
    };
    let good = Side::new(&ca, &number(41), &ca);
    let lost = Side::new(&ca, &number(42), &ca);
    server.write("crl.pem", &ca.revoke(&[42]));
    let now = Server::read(&files(&server)).unwrap();
    let client = |side: &Side| Client::read(&files(side)).unwrap();
    assert!(meet(&now, &client(&good), "p.example").await.0.is_ok());
    let (saw, told) = meet(&now, &client(&lost), "p.example").await;
    assert!(saw.unwrap_err().contains("Revoked"));
    assert!(told.unwrap_err().contains("Revoked"));
    let chain = |side: &Side| prepare::certificates(&side.path("cert.pem")).unwrap();
    assert!(now.takes(&chain(&good)).is_ok());
    assert!(
        now.takes(&chain(&lost)).is_err(),
        "on connections that stand too"
    );
    // The list of another authority says nothing of this one.
    server.write("crl.pem", &Authority::new("stranger").revoke(&[42]));
    let now = Server::read(&files(&server)).unwrap();
    assert!(meet(&now, &client(&good), "p.example").await.0.is_err());
}

/// An authority with its certificate, by itself or by another.
fn authority(
    name: &str,
    serial: u64,
    by: Option<&Issuer<'_, KeyPair>>,
) -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial.into());
    params.distinguished_name.push(DnType::CommonName, name);
    let own = match by {
        Some(by) => params.signed_by(&key, by).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    (Issuer::new(params, key), own.pem())
}

/// A list of an authority, which is due to be replaced at the beginning of a year.
fn list(of: &Issuer<'_, KeyPair>, serials: &[u64], due: i32) -> String {
    let revoked = |serial: &u64| RevokedCertParams {
        serial_number: (*serial).into(),
        revocation_time: date_time_ymd(2021, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2021, 1, 1),
        next_update: date_time_ymd(due, 1, 1),
        crl_number: 1_u64.into(),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(of).unwrap().pem().unwrap()
}

#[tokio::test]
async fn each_authority_of_a_chain_has_a_list_and_is_on_none() {
    let (root, root_pem) = authority("root", 1, None);
    let (middle, middle_pem) = authority("middle", 2, Some(&root));
    let any = Authority::new("any");
    let issue = |name: &str| {
        let side = Side::new(&any, &leaf(&[name]), &any);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let own = params.signed_by(&key, &middle).unwrap().pem();
        side.write("ca.pem", &root_pem);
        side.write("key.pem", &key.serialize_pem());
        side.write("cert.pem", &format!("{own}{middle_pem}"));
        side
    };
    let (server, director) = (issue("p.example"), issue("lb1.example"));
    let client = Client::read(&files(&director)).unwrap();
    let saw = async |lists: &[String]| {
        server.write("crl.pem", &lists.concat());
        let now = Server::read(&files(&server)).unwrap();
        (now.lists_end(), meet(&now, &client, "p.example").await.0)
    };
    let own = list(&middle, &[], 2120);
    let (due, good) = saw(&[own.clone(), list(&root, &[], 2024)]).await;
    assert!(good.is_ok(), "an old list counts on: {good:?}");
    assert_eq!(due, Some(1_704_067_200), "and it is said which is old");
    let (_, bad) = saw(&[own.clone(), list(&root, &[2], 2120)]).await;
    assert!(bad.unwrap_err().contains("Revoked"));
    let (_, bad) = saw(std::slice::from_ref(&own)).await;
    assert!(bad.unwrap_err().contains("UnknownRevocationStatus"));
    let unknown = CertificateError::UnknownRevocationStatus;
    let unknown = std::io::Error::other(rustls::Error::InvalidCertificate(unknown));
    assert!(why(&unknown).ends_with("crl has to have a list of each authority in its chain"));
}

#[tokio::test]
async fn a_renewed_certificate_is_used_and_a_broken_one_is_not() {
    let ca = Authority::new("ca");
    let side = Side::new(&ca, &leaf(&["p.example"]), &ca);
    let first = Server::read(&files(&side)).unwrap();
    let now = watch::Sender::new(Arc::new(first));
    let mut seen = now.subscribe();
    let (told, mut tellings) = tokio::sync::mpsc::channel(1024);
    let stop = CancellationToken::new();
    let tell = move |what| told.try_send(what).unwrap_or_default();
    let mut kept = tokio::task::JoinSet::new();
    kept.spawn(keep(
        files(&side),
        now,
        Duration::from_millis(5),
        tell,
        stop.clone(),
    ));
    let mut next = async || timeout(LIMIT, tellings.recv()).await.unwrap().unwrap();
    assert!(matches!(next().await, Told::Renewed(_)));
    seen.borrow_and_update();

    side.write("cert.pem", "half of a");
    assert_eq!(next().await, Told::Refused);
    assert!(!seen.has_changed().unwrap(), "the former one stays");

    let until = Leaf {
        years: (2020, 2100),
        ..leaf(&["p.example"])
    };
    side.renew(&ca, &until);
    // Between certificate and key it may have looked.
    let ends = loop {
        if let Told::Renewed(ends) = next().await {
            break ends;
        }
    };
    assert_eq!(ends, 4_102_444_800);
    assert_eq!(seen.borrow_and_update().ends(), ends);

    // Renewed as ACME clients do: a link is turned.
    let other = Side::new(&ca, &leaf(&["p.example"]), &ca);
    for name in ["cert.pem", "key.pem"] {
        let link: PathBuf = side.path("link");
        std::os::unix::fs::symlink(other.path(name), &link).unwrap();
        std::fs::rename(link, side.path(name)).unwrap();
    }
    while !matches!(next().await, Told::Renewed(ends) if ends > 4_102_444_800) {}
    stop.cancel();
    kept.join_next().await.unwrap().unwrap();
}
