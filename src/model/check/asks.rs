//! What a check asks, in words for operators.

use super::{
    CheckKind, Expect, HttpCheck, HttpVersion, SmtpTls, StatusRange, TcpCheck, UdpCheck, Verify,
};

/// So much of a text that is sent or expected is shown.
const SHOWN: usize = 40;

impl CheckKind {
    /// What it asks, and what passes: `GET /health with Host www, status 200-299`. Never what it logs in with.
    #[must_use]
    pub fn asks(&self) -> String {
        let mut text = match self {
            Self::Tcp(tcp) => connection("a TCP connection", tcp),
            Self::Agent(tcp) => connection("the server's own word", tcp),
            Self::Http(http) => request(http),
            Self::Tls(_) => "a TLS handshake".to_owned(),
            Self::Smtp(smtp) => match &smtp.tls {
                Some(SmtpTls::Starttls(_)) => "greeting, EHLO, STARTTLS".to_owned(),
                Some(SmtpTls::Implicit(_)) | None => "greeting, EHLO".to_owned(),
            },
            Self::Dns(dns) => {
                let over = if dns.tcp { " over TCP" } else { "" };
                let wants = dns.answer.as_ref().map(|a| format!(", answer {a}"));
                let record = format!("{:?}", dns.record).to_uppercase();
                format!("{} {record}{over}{}", dns.name, wants.unwrap_or_default())
            }
            Self::Udp(udp) => datagram(udp),
            Self::Icmp(_) => "an ICMP echo".to_owned(),
            Self::Postgres(login) | Self::Mysql(login) | Self::Redis(login) => {
                match (&login.credentials, &login.database) {
                    (None, _) => "its greeting".to_owned(),
                    (Some(_), None) => "a login".to_owned(),
                    (Some(_), Some(database)) => format!("a login to database {database}"),
                }
            }
            Self::Grpc(grpc) if grpc.service.is_empty() => "the health of the server".to_owned(),
            Self::Grpc(grpc) => format!("the health of {}", grpc.service),
            Self::FromFile(_) => "the word in a file".to_owned(),
            Self::External(external) => format!("a helper, for {}", external.name),
        };
        if let Some(tls) = self.tls() {
            let name = tls.sni.as_ref().map(|name| format!(" as {name}"));
            let how = match &tls.verify {
                Verify::System | Verify::Ca(_) => "",
                Verify::Pin(_) => ", pinned certificate",
                Verify::Off => ", any certificate",
            };
            text.push_str(&format!(", TLS{}{how}", name.unwrap_or_default()));
        }
        text
    }
}

fn connection(what: &str, tcp: &TcpCheck) -> String {
    let mut text = what.to_owned();
    if !tcp.send.is_empty() {
        text.push_str(&format!(", sends {}", bytes(&tcp.send)));
    }
    text + &answer(tcp.expect.as_ref())
}

fn datagram(udp: &UdpCheck) -> String {
    let silence = match udp.require_reply || udp.expect.is_some() {
        true => "",
        false => ", silence passes",
    };
    format!("a datagram{}{silence}", answer(udp.expect.as_ref()))
}

fn request(http: &HttpCheck) -> String {
    let version = match http.version {
        HttpVersion::One => "",
        HttpVersion::Two => " over HTTP/2",
    };
    let host = http.host.as_ref().map(|host| format!(" with Host {host}"));
    let range = |s: &StatusRange| match s.from == s.to {
        true => s.from.to_string(),
        false => format!("{}-{}", s.from, s.to),
    };
    let statuses: Vec<_> = http.status.iter().map(range).collect();
    format!(
        "{} {}{version}{}, status {}{}",
        http.method,
        http.path,
        host.unwrap_or_default(),
        statuses.join(" or "),
        answer(http.body.as_ref())
    )
}

fn answer(expect: Option<&Expect>) -> String {
    match expect {
        None => String::new(),
        Some(Expect::Text(text)) => format!(", expects {}", bytes(text.as_bytes())),
        Some(Expect::Regex(pattern)) => format!(", expects a match of {pattern:?}"),
        Some(Expect::Bytes(all)) => format!(", expects {} bytes", all.len()),
        Some(Expect::Sha256(_)) => ", expects a digest".to_owned(),
    }
}

/// The first of it, in one line.
fn bytes(all: &[u8]) -> String {
    let text = String::from_utf8_lossy(all);
    let first: String = text.chars().take(SHOWN).collect();
    let more = if text.chars().count() > SHOWN {
        "…"
    } else {
        ""
    };
    format!("{first:?}{more}")
}

#[cfg(test)]
mod tests {
    use super::super::{DnsCheck, DnsType, LoginCheck, TlsOptions};
    use super::*;

    #[test]
    fn what_is_asked_is_said_in_one_line_without_secrets() {
        let http = HttpCheck {
            path: "/health".to_owned(),
            host: Some("www".to_owned()),
            credentials: Some("/etc/secret".into()),
            body: Some(Expect::Text("ok".to_owned())),
            tls: Some(TlsOptions {
                sni: Some("www.example".to_owned()),
                verify: Verify::Off,
                ..TlsOptions::default()
            }),
            ..HttpCheck::default()
        };
        let kind = CheckKind::Http(Box::new(http));
        assert_eq!(
            kind.asks(),
            "GET /health with Host www, status 200-299, expects \"ok\", TLS as www.example, any certificate"
        );
        let sends = TcpCheck {
            send: b"PING\r\n".to_vec(),
            ..TcpCheck::default()
        };
        assert_eq!(
            CheckKind::Tcp(sends).asks(),
            "a TCP connection, sends \"PING\\r\\n\""
        );
        let dns = DnsCheck {
            name: "example.org".to_owned(),
            record: DnsType::Aaaa,
            tcp: true,
            answer: None,
        };
        assert_eq!(CheckKind::Dns(dns).asks(), "example.org AAAA over TCP");
        let login = LoginCheck {
            credentials: Some("/etc/secret".into()),
            database: Some("shop".to_owned()),
            tls: None,
        };
        assert_eq!(CheckKind::Mysql(login).asks(), "a login to database shop");
        let silent = CheckKind::Udp(UdpCheck::default());
        assert_eq!(silent.asks(), "a datagram, silence passes");
    }
}
