//! Traffic, not only tables: requests of real clients pass by every forwarding method, family and
//! encapsulation that the client writes, and the client reads what they left behind.
//!
//! ```text
//!  client .100 .101 ─── 10.77.0.0/24 ─┬─ .1 director .1 ─┬─ 10.77.1.0/24 ─┬─ web1 .11
//!                       fd77:0::/64  └─ .254 router .254 ┘   fd77:1::/64  └─ web2 .12
//! ```
//!
//! Each case has a virtual address of its own, 192.0.2.N or 2001:db8::N: all of these networks are
//! local to the director and to the servers. A server answers from its own address through the
//! director (NAT), from a virtual one through the router (DR and TUN).

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{
        IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket,
    },
    os::fd::{AsRawFd as _, OwnedFd},
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrIn, bind, connect, listen,
    socket,
};
use understudy::{
    ipvs::Ipvs,
    model::{
        DestAttrs, DestKey, ForwardMethod, KernelTable, Protocol, ServiceAttrs, ServiceFlags,
        ServiceKey, Step, Tunnel, TunnelType,
    },
    reconcile::plan::diff,
};

use crate::{
    ipvs::{flagged, ipvsadm, persistent, server, service},
    lab::{netns::NetNs, show},
};

const CLIENT: &str = "10.77.0.100";
const CLIENT6: &str = "fd77:0::100";
/// A second client of the same host.
const CLIENT_B: &str = "10.77.0.101";
const SERVERS: [&str; 2] = ["web1", "web2"];
const LIMIT: Duration = Duration::from_secs(4);
/// Where a server serves what comes by NAT with port translation.
const TRANSLATED: u16 = 8080;
const GUE: u16 = 6080;

/// Which of a server's addresses: its n-th, of as many as one tunnel device each needs.
#[derive(Clone, Copy)]
enum At {
    V4(u8),
    V6(u8),
}

/// Without checksum, or for IPv6.
const PLAIN: u8 = 10;
/// The end of a GRE tunnel that wants checksums.
const CHECKED: u8 = 20;

impl At {
    fn of(self, server: usize) -> IpAddr {
        let number = u8::try_from(server).unwrap() + 1;
        match self {
            Self::V4(base) => Ipv4Addr::new(10, 77, 1, base + number).into(),
            // Written as the IPv4 address's last number is: fd77:1::11.
            Self::V6(base) => format!("fd77:1::{}", base + number).parse().unwrap(),
        }
    }
}

struct Case {
    name: &'static str,
    key: ServiceKey,
    attrs: ServiceAttrs,
    at: At,
    port: u16,
    dest: DestAttrs,
    /// The servers' device that the requests come in by, for tunnels.
    device: Option<&'static str>,
}

impl Case {
    fn dest(&self, server: usize) -> DestKey {
        DestKey {
            addr: self.at.of(server),
            port: self.port,
        }
    }

    fn steps(&self) -> Vec<Step> {
        let dests = (0..SERVERS.len()).map(|n| Step::NewDest(self.key, self.dest(n), self.dest));
        std::iter::once(Step::NewService(self.key, self.attrs.clone()))
            .chain(dests)
            .collect()
    }

    fn vip(&self) -> SocketAddr {
        match self.key {
            ServiceKey::Addr(_, addr) => addr,
            ServiceKey::Fwmark(..) => panic!("{} has no address", self.name),
        }
    }

    /// The client's address as its server sees it.
    fn client(&self) -> IpAddr {
        let client = if self.vip().is_ipv4() {
            CLIENT
        } else {
            CLIENT6
        };
        client.parse().unwrap()
    }
}

fn vip(v6: bool, number: u16, port: u16) -> SocketAddr {
    let ip = if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number).into()
    } else {
        Ipv4Addr::new(192, 0, 2, number.try_into().unwrap()).into()
    };
    SocketAddr::new(ip, port)
}

/// Every method, family and encapsulation that Linux 6.1 forwards by.
fn cases() -> Vec<Case> {
    use ForwardMethod::{Dr, Nat, Tun};
    use TunnelType::{Gre, Gue, Ipip};
    let plain = |forward| server(forward, 1);
    let tunnel = |kind, port, flags| DestAttrs {
        tunnel: Tunnel { kind, port, flags },
        ..server(Tun, 1)
    };
    let (sum, remote) = (Tunnel::CHECKSUM, Tunnel::REMOTE_CHECKSUM);
    let (v4, v6) = (At::V4(PLAIN), At::V6(PLAIN));
    let gre_sum = tunnel(Gre, 0, sum);
    let list = [
        ("NAT, IPv4", false, v4, plain(Nat), None),
        ("NAT, IPv6", true, v6, plain(Nat), None),
        ("DR, IPv4", false, v4, plain(Dr), None),
        ("DR, IPv6", true, v6, plain(Dr), None),
        ("ipip", false, v4, tunnel(Ipip, 0, 0), Some("tunl0")),
        ("ip6ip6", true, v6, tunnel(Ipip, 0, 0), Some("ip6tnl0")),
        ("IPv6 by ipip", true, v4, tunnel(Ipip, 0, 0), Some("sit0")),
        (
            "IPv4 by ip6tnl",
            false,
            v6,
            tunnel(Ipip, 0, 0),
            Some("ip6tnl0"),
        ),
        ("gue", false, v4, tunnel(Gue, GUE, 0), Some("tunl0")),
        (
            "gue, checksum",
            false,
            v4,
            tunnel(Gue, GUE, sum),
            Some("tunl0"),
        ),
        (
            "gue, remote checksum",
            false,
            v4,
            tunnel(Gue, GUE, remote),
            Some("tunl0"),
        ),
        ("IPv6 by gue", true, v4, tunnel(Gue, GUE, 0), Some("sit0")),
        (
            "IPv6 by gue, checksum",
            true,
            v4,
            tunnel(Gue, GUE, sum),
            Some("sit0"),
        ),
        (
            "gue over IPv6",
            true,
            v6,
            tunnel(Gue, GUE, sum),
            Some("ip6tnl0"),
        ),
        ("gre", false, v4, tunnel(Gre, 0, 0), Some("gre0")),
        (
            "gre, checksum",
            false,
            At::V4(CHECKED),
            gre_sum,
            Some("gresum"),
        ),
        ("IPv6 by gre", true, v4, tunnel(Gre, 0, 0), Some("gre0")),
        (
            "IPv6 by gre, checksum",
            true,
            At::V4(CHECKED),
            gre_sum,
            Some("gresum"),
        ),
        (
            "gre over IPv6",
            true,
            v6,
            tunnel(Gre, 0, 0),
            Some("ip6gre0"),
        ),
    ];
    let mut cases: Vec<_> = (1..)
        .zip(list)
        .map(|(number, (name, ipv6, at, dest, device))| Case {
            name,
            key: ServiceKey::Addr(Protocol::Tcp, vip(ipv6, number, 80)),
            attrs: service("rr"),
            at,
            port: 80,
            dest,
            device,
        })
        .collect();
    for (name, ipv6, number, at) in [
        ("NAT with another port, IPv4", false, 50, v4),
        ("NAT with another port, IPv6", true, 50, v6),
    ] {
        cases.push(Case {
            name,
            key: ServiceKey::Addr(Protocol::Tcp, vip(ipv6, number, 80)),
            attrs: service("rr"),
            at,
            port: TRANSLATED,
            dest: plain(Nat),
            device: None,
        });
    }
    cases
}

struct Net {
    client: NetNs,
    director: NetNs,
    servers: Vec<NetNs>,
    /// Forwards what goes past the director.
    _router: NetNs,
}

impl Net {
    fn new() -> Self {
        let (client, director, router) = (NetNs::new(), NetNs::new(), NetNs::new());
        let servers: Vec<_> = SERVERS.iter().map(|_| NetNs::new()).collect();
        router.forwarding();
        director.forwarding();
        let mut cables = "
            link add br-client type bridge mcast_snooping 0
            link add br-server type bridge mcast_snooping 0
            addr add 10.77.0.254/24 dev br-client
            addr add fd77:0::254/64 dev br-client
            addr add 10.77.1.254/24 dev br-server
            addr add fd77:1::254/64 dev br-server
            link set br-client up
            link set br-server up\n"
            .to_owned();
        cables += &NetNs::plug("client", "br-client", &client, "eth0");
        cables += &NetNs::plug("dir-client", "br-client", &director, "client");
        cables += &NetNs::plug("dir-server", "br-server", &director, "server");
        for (name, server) in SERVERS.iter().zip(&servers) {
            cables += &NetNs::plug(name, "br-server", server, "eth0");
        }
        router.ip(&cables);
        client.ip(&format!(
            "link set lo up
            addr add {CLIENT}/24 dev eth0
            addr add {CLIENT_B}/24 dev eth0
            addr add {CLIENT6}/64 dev eth0
            link set eth0 up
            route add 192.0.2.0/24 via 10.77.0.1 src {CLIENT}
            route add 2001:db8::/64 via fd77:0::1"
        ));
        director.ip("link set lo up
            addr add 10.77.0.1/24 dev client
            addr add fd77:0::1/64 dev client
            addr add 10.77.1.1/24 dev server
            addr add fd77:1::1/64 dev server
            link set client up
            link set server up
            route add local 192.0.2.0/24 dev lo
            route add local 2001:db8::/64 dev lo");
        for (n, server) in servers.iter().enumerate() {
            Self::wire(server, n);
        }
        Self {
            client,
            director,
            servers,
            _router: router,
        }
    }

    fn wire(server: &NetNs, n: usize) {
        let (v4, v6) = (At::V4(PLAIN).of(n), At::V6(PLAIN).of(n));
        let checked = At::V4(CHECKED).of(n);
        let mut batch = format!(
            "link set lo up
            addr add {v4}/24 dev eth0
            addr add {checked}/24 dev eth0
            addr add {v6}/64 dev eth0
            link set eth0 up
            route add default via 10.77.1.1
            route add default via fd77:1::1
            route add local 192.0.2.0/24 dev lo
            route add local 2001:db8::/64 dev lo
            rule add from 192.0.2.0/24 lookup 100
            route add default via 10.77.1.254 table 100
            route add default via fd77:1::254 table 100
            link add gresum type gre local {checked} remote any icsum
            fou add port {GUE} gue
            fou add port {GUE} gue -6\n"
        );
        // `sit0` of the module sit, the others of ipip, ip6_tunnel, ip_gre and ip6_gre: each takes
        // in what no tunnel of its own is for.
        for device in ["tunl0", "sit0", "gre0", "gresum", "ip6tnl0", "ip6gre0"] {
            batch += &format!("link set {device} up\n");
        }
        server.ip(&batch);
        server.ip6(
            "rule add from 2001:db8::/64 lookup 100
            tunnel change ip6tnl0 mode any",
        );
    }

    /// Packets that each server took in by a device.
    fn received(&self, device: &str) -> Vec<u64> {
        let count = || {
            let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            let line = table.lines().find_map(|l| {
                let (name, rest) = l.split_once(':')?;
                (name.trim() == device).then(|| rest.to_owned())
            });
            let line = line.unwrap_or_else(|| panic!("no device {device}:\n{table}"));
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        self.servers
            .iter()
            .map(|server| server.run(count))
            .collect()
    }
}

/// Serves on a port of every address. To each line, the first one being the connection itself, it
/// answers who it is, which client it sees, and where. Ends with the process.
fn serve(name: &'static str, listener: TcpListener) {
    let answer = move |stream: TcpStream| -> std::io::Result<()> {
        let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
        let text = format!(
            "{name} {} {}\n",
            peer.ip().to_canonical(),
            SocketAddr::new(local.ip().to_canonical(), local.port()),
        );
        (&stream).write_all(text.as_bytes())?;
        for _ in BufReader::new(&stream).split(b'\n').map_while(Result::ok) {
            (&stream).write_all(text.as_bytes())?;
        }
        Ok(())
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // A client that goes away midway is the client's affair.
            std::thread::spawn(move || answer(stream).ok());
        }
    });
}

/// Answers to each datagram with the server's name.
fn serve_udp(name: &'static str, socket: UdpSocket) {
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
            socket.send_to(name.as_bytes(), from).unwrap();
        }
    });
}

/// What a server answered: its name, the client that it saw, its own address.
type Answer = (String, IpAddr, SocketAddr);

/// An open connection.
struct Call(BufReader<TcpStream>);

impl Call {
    /// Connects from an address, in the client's namespace.
    fn new(from: Option<&str>, to: SocketAddr) -> Result<Self, String> {
        Self::by(SockProtocol::Tcp, from, to)
    }

    fn by(protocol: SockProtocol, from: Option<&str>, to: SocketAddr) -> Result<Self, String> {
        let stream = match (from, to) {
            (None, _) => TcpStream::connect_timeout(&to, LIMIT).map_err(|e| format!("{e}"))?,
            (Some(from), SocketAddr::V4(to)) => stream_of(protocol, from, to)?,
            (Some(_), SocketAddr::V6(_)) => panic!("not for IPv6"),
        };
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Ok(Self(BufReader::new(stream)))
    }

    fn answer(&mut self) -> Result<Answer, String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line);
        read.map_err(|e| format!("no answer: {e}"))?;
        let mut words = line.split_whitespace();
        let mut word = || words.next().ok_or(format!("it answered {line:?}"));
        let (name, peer, local) = (word()?, word()?, word()?);
        Ok((
            name.to_owned(),
            peer.parse().unwrap(),
            local.parse().unwrap(),
        ))
    }

    fn ask_again(&mut self) -> Result<Answer, String> {
        let sent = self.0.get_mut().write_all(b"again\n");
        sent.map_err(|e| format!("{e}"))?;
        self.answer()
    }

    /// Ends it from this side and waits for the other.
    fn close(self) {
        let mut stream = self.0.into_inner();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
}

fn stream_socket(protocol: SockProtocol, at: SocketAddrV4) -> OwnedFd {
    let family = AddressFamily::Inet;
    let socket = socket(family, SockType::Stream, SockFlag::empty(), protocol)
        .unwrap_or_else(|e| panic!("{protocol:?}: {e}"));
    bind(socket.as_raw_fd(), &SockaddrIn::from(at)).unwrap();
    socket
}

fn stream_of(protocol: SockProtocol, from: &str, to: SocketAddrV4) -> Result<TcpStream, String> {
    let socket = stream_socket(protocol, SocketAddrV4::new(from.parse().unwrap(), 0));
    let stream = TcpStream::from(socket);
    // For connect(2) too.
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    connect(stream.as_raw_fd(), &SockaddrIn::from(to)).map_err(|e| format!("connect: {e}"))?;
    Ok(stream)
}

/// One request on a connection of its own.
fn request(from: Option<&str>, to: SocketAddr) -> Result<Answer, String> {
    let mut call = Call::new(from, to)?;
    let answer = call.answer()?;
    call.close();
    Ok(answer)
}

/// Four requests: both servers answer two each, seeing the client's address, and where they shall.
fn pass(net: &Net, case: &Case) -> Result<(), String> {
    let before = case.device.map(|device| net.received(device));
    let mut names = BTreeMap::new();
    for _ in 0..4 {
        let (name, peer, local) = net.client.run(|| request(None, case.vip()))?;
        let n = SERVERS.iter().position(|server| *server == name).unwrap();
        // What comes by NAT is for the server itself, all else for the virtual address.
        let wanted = if case.dest.forward == ForwardMethod::Nat {
            SocketAddr::new(case.at.of(n), case.port)
        } else {
            case.vip()
        };
        if (peer, local) != (case.client(), wanted) {
            return Err(format!("{name} saw {peer} at {local}, not at {wanted}"));
        }
        *names.entry(name).or_insert(0) += 1;
    }
    if names.len() != 2 || names.values().any(|count| *count != 2) {
        return Err(format!("answers came from {names:?}"));
    }
    if let (Some(device), Some(before)) = (case.device, before) {
        let after = net.received(device);
        // A connection is 4 packets at least: SYN, ACK, FIN, ACK.
        if after.iter().zip(&before).any(|(a, b)| a - b < 8) {
            return Err(format!(
                "{device} took in {before:?}, then {after:?} packets"
            ));
        }
    }
    Ok(())
}

/// What the client reads of a case after its four requests.
fn counted(case: &Case, table: &KernelTable) -> Result<(), String> {
    let state = table.get(&case.key).ok_or("no such service")?;
    if state.stats.connections != 4 {
        return Err(format!("the service counts {:?}", state.stats));
    }
    for (n, name) in SERVERS.iter().enumerate() {
        let stats = state.dests[&case.dest(n)].stats();
        // The director sees what goes back by NAT alone.
        let back = case.dest.forward == ForwardMethod::Nat;
        let right = stats.connections == 2
            // To each connection SYN, ACK, FIN and ACK; from it SYN, an answer and FIN.
            && stats.packets_in >= 8
            && stats.bytes_in >= 8 * 40
            && (stats.packets_out >= 6) == back
            && (stats.bytes_out >= 6 * 40) == back
            && (back || stats.packets_out == 0);
        if !right {
            return Err(format!("{name} counts {stats:?}"));
        }
    }
    Ok(())
}

async fn apply_all(ipvs: &mut Ipvs, steps: &[Step]) {
    for (step, result) in steps.iter().zip(ipvs.apply(steps).await) {
        result.unwrap_or_else(|error| panic!("{step}: {error:?}"));
    }
}

/// Runs `test` with a client in the director's namespace.
fn directed<T: Future<Output = ()>>(net: &Net, test: impl FnOnce(Ipvs) -> T + Send) {
    net.director.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { test(Ipvs::connect().await.unwrap()).await });
    });
}

/// Asks the kernel until what it says is right: it sums its counters every two seconds
/// (`ip_vs_estimation`'s timer).
async fn until(
    ipvs: &mut Ipvs,
    what: &str,
    right: impl Fn(&KernelTable) -> Result<(), String>,
) -> KernelTable {
    let start = Instant::now();
    loop {
        let table = ipvs.table().await.unwrap();
        match right(&table) {
            Ok(()) => return table,
            Err(last) => assert!(start.elapsed() < Duration::from_secs(15), "{what}: {last}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn requests_pass_by_every_method_family_and_encapsulation() {
    let start = Instant::now();
    let net = Net::new();
    for (name, server) in SERVERS.iter().zip(&net.servers) {
        for port in [80, TRANSLATED] {
            serve(
                name,
                server.run(|| TcpListener::bind(("::", port)).unwrap()),
            );
        }
    }
    let mut cases = cases();
    show(&format!("{:>6} ms  a network", start.elapsed().as_millis()));
    directed(&net, async |mut ipvs| {
        let steps: Vec<_> = cases.iter().flat_map(Case::steps).collect();
        let mut failed = Vec::new();
        // What the kernel does not take fails its case alone.
        for (step, result) in steps.iter().zip(ipvs.apply(&steps).await) {
            if let Err(error) = result {
                failed.push(format!("{step}: {error:?}"));
            }
        }
        let mut passed = Vec::new();
        for case in cases.drain(..) {
            match pass(&net, &case) {
                Ok(()) => passed.push(case),
                Err(error) => failed.push(format!("{}: {error}", case.name)),
            }
        }
        show(&format!("{:>6} ms  requests", start.elapsed().as_millis()));
        assert_eq!(failed, Vec::<String>::new());
        for case in &passed {
            until(&mut ipvs, case.name, |table| counted(case, table)).await;
        }
        as_ipvsadm_lists(&mut ipvs).await;
        show(&format!("{:>6} ms  all", start.elapsed().as_millis()));
    });
}

/// The lines of a listing of ipvsadm that are destinations, words apart, after its two lines of
/// headings; each begins with the words that name its service.
fn listed(arguments: &str) -> Vec<Vec<String>> {
    let mut service = Vec::new();
    let mut found = Vec::new();
    for line in ipvsadm(arguments).iter().skip(3) {
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        if words[0] == "->" {
            found.push([&service[..], &words[1..]].concat());
        } else {
            service = words[..2].to_vec();
        }
    }
    found.sort();
    found
}

/// The same of a table that the client read: `numbers` of each destination.
fn as_listed(
    table: &KernelTable,
    numbers: impl Fn(&understudy::model::DestState) -> Vec<u64>,
) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (key, state) in table {
        let service = match key {
            ServiceKey::Addr(protocol, addr) => {
                [format!("{protocol:?}").to_uppercase(), addr.to_string()]
            }
            ServiceKey::Fwmark(_, mark) => ["FWM".to_owned(), mark.to_string()],
        };
        for (dest, state) in &state.dests {
            let mut words = service.to_vec();
            words.push(dest.to_string());
            words.extend(numbers(state).iter().map(u64::to_string));
            found.push(words);
        }
    }
    found.sort();
    found
}

/// All numbers that ipvsadm prints are those that the client reads.
async fn as_ipvsadm_lists(ipvs: &mut Ipvs) {
    type Numbers = fn(&understudy::model::DestState) -> Vec<u64>;
    let listings: [(&str, Numbers); 4] = [
        ("-Ln --stats --exact", |d| {
            let s = d.stats();
            vec![
                s.connections,
                s.packets_in,
                s.packets_out,
                s.bytes_in,
                s.bytes_out,
            ]
        }),
        ("-Ln --rate --exact", |d| {
            let s = d.stats();
            vec![
                s.connection_rate,
                s.packet_rate_in,
                s.packet_rate_out,
                s.byte_rate_in,
                s.byte_rate_out,
            ]
        }),
        ("-Ln --persistent-conn", |d| {
            vec![
                d.attrs.weight.get().into(),
                d.persistent_connections.into(),
                d.active_connections.into(),
                d.inactive_connections.into(),
            ]
        }),
        ("-Ln --thresholds", |d| {
            vec![
                d.attrs.upper.into(),
                d.attrs.lower.into(),
                d.active_connections.into(),
                d.inactive_connections.into(),
            ]
        }),
    ];
    for (arguments, numbers) in listings {
        // Counters and rates move every two seconds: what counts is a listing during which nothing did.
        let mut still = async || loop {
            let before = ipvs.table().await.unwrap();
            let lines = listed(arguments);
            if ipvs.table().await.unwrap() == before {
                return (before, lines);
            }
        };
        let limit = Duration::from_secs(20);
        let (table, lines) = tokio::time::timeout(limit, still())
            .await
            .unwrap_or_else(|_| panic!("{arguments}: the numbers never stood still"));
        assert_eq!(lines, as_listed(&table, numbers), "{arguments}");
    }
}

#[test]
fn one_packet_marks_sctp_persistence_and_connections() {
    let net = Net::new();
    for (n, (name, server)) in SERVERS.iter().zip(&net.servers).enumerate() {
        serve(name, server.run(|| TcpListener::bind(("::", 80)).unwrap()));
        serve(name, server.run(|| TcpListener::bind(("::", 443)).unwrap()));
        serve_udp(
            name,
            server.run(|| UdpSocket::bind(vip(false, 1, 53)).unwrap()),
        );
        let sctp = server.run(|| {
            let IpAddr::V4(own) = At::V4(PLAIN).of(n) else {
                panic!()
            };
            let socket = stream_socket(SockProtocol::Sctp, SocketAddrV4::new(own, 9));
            listen(&socket, Backlog::new(5).unwrap()).unwrap();
            TcpListener::from(socket)
        });
        serve(name, sctp);
    }
    directed(&net, async |mut ipvs| {
        one_packet(&net, &mut ipvs).await;
        marks(&net, &mut ipvs).await;
        sctp(&net, &mut ipvs).await;
        persistence(&net, &mut ipvs).await;
        connections(&net, &mut ipvs).await;
        zeroing(&mut ipvs).await;
    });
}

fn special(name: &'static str, key: ServiceKey, attrs: ServiceAttrs, port: u16) -> Case {
    Case {
        name,
        key,
        attrs,
        at: At::V4(PLAIN),
        port,
        dest: server(ForwardMethod::Nat, 1),
        device: None,
    }
}

/// One socket's packets go to both servers in turn, and leave no connection behind.
async fn one_packet(net: &Net, ipvs: &mut Ipvs) {
    let key = ServiceKey::Addr(Protocol::Udp, vip(false, 1, 53));
    let one_packet = flagged("rr", ServiceFlags::ONE_PACKET);
    let mut case = special("one packet", key, one_packet, 53);
    case.dest.forward = ForwardMethod::Dr;
    apply_all(ipvs, &case.steps()).await;
    let ask = || {
        let socket = UdpSocket::bind((CLIENT, 0)).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.connect(case.vip()).unwrap();
        let mut answers = Vec::new();
        for _ in 0..4 {
            socket.send(b"who").unwrap();
            let mut answer = [0; 16];
            let length = socket.recv(&mut answer).expect("one packet: no answer");
            answers.push(String::from_utf8_lossy(&answer[..length]).into_owned());
        }
        answers
    };
    let mut answers = net.client.run(ask);
    assert_ne!(answers[0], answers[1], "one packet: {answers:?}");
    answers.sort();
    assert_eq!(answers, ["web1", "web1", "web2", "web2"], "one packet");
    until(ipvs, case.name, |table| {
        let dests = &table[&key].dests;
        let right = |n| {
            let dest = &dests[&case.dest(n)];
            let connections = dest.active_connections + dest.inactive_connections;
            (
                dest.stats().connections,
                dest.stats().packets_in,
                connections,
            ) == (2, 2, 0)
        };
        (right(0) && right(1))
            .then_some(())
            .ok_or(format!("{dests:?}"))
    })
    .await;
}

/// Two ports of an address are one service by their mark; the servers' port is the client's.
async fn marks(net: &Net, ipvs: &mut Ipvs) {
    let mut cases = Vec::new();
    for (name, ipv6, mark) in [
        ("a mark", false, 7),
        ("a mark above 2^31", true, 0x8000_0007),
    ] {
        let family = if ipv6 {
            understudy::model::Family::V6
        } else {
            understudy::model::Family::V4
        };
        let key = ServiceKey::Fwmark(family, mark);
        let mut case = special(name, key, service("rr"), 0);
        if ipv6 {
            case.at = At::V6(PLAIN);
        }
        apply_all(ipvs, &case.steps()).await;
        cases.push((case, vip(ipv6, 2, 80), vip(ipv6, 2, 443)));
    }
    // The test's thread is in the director's namespace.
    let rules = "
        table ip m {
            chain c {
                type filter hook prerouting priority mangle
                ip daddr 192.0.2.2 tcp dport { 80, 443 } meta mark set 7
            }
        }
        table ip6 m {
            chain c {
                type filter hook prerouting priority mangle
                ip6 daddr 2001:db8::2 tcp dport { 80, 443 } meta mark set 0x80000007
            }
        }";
    let nft = Command::new("nft").arg(rules).output().unwrap();
    assert!(nft.status.success(), "{nft:?}");
    for (case, first, second) in &cases {
        let name = case.name;
        let ask = || [first, second, first, second].map(|to| request(None, *to));
        let answers = net.client.run(ask).map(|answer| answer.expect(name));
        let ports = answers.each_ref().map(|(_, _, local)| local.port());
        assert_eq!(ports, [80, 443, 80, 443], "{name}");
        for at in 0..3 {
            assert_ne!(answers[at].0, answers[at + 1].0, "{name}: {answers:?}");
        }
        until(ipvs, name, |table| counted(case, table)).await;
    }
}

async fn sctp(net: &Net, ipvs: &mut Ipvs) {
    let to = vip(false, 3, 9);
    let case = special(
        "SCTP",
        ServiceKey::Addr(Protocol::Sctp, to),
        service("rr"),
        9,
    );
    apply_all(ipvs, &case.steps()).await;
    let ask = || {
        [(); 4].map(|()| {
            let mut call = Call::by(SockProtocol::Sctp, Some(CLIENT), to).expect("SCTP");
            let (name, ..) = call.answer().expect("SCTP");
            name
        })
    };
    let mut answers = net.client.run(ask);
    answers.sort();
    assert_eq!(answers, ["web1", "web1", "web2", "web2"], "SCTP");
    until(ipvs, case.name, |table| counted(&case, table)).await;
}

/// A client stays with its server, by address or by network.
async fn persistence(net: &Net, ipvs: &mut Ipvs) {
    let key = |number| ServiceKey::Addr(Protocol::Tcp, vip(false, number, 80));
    let each = special("persistence", key(4), persistent(300, 32, None), 80);
    let nets = special(
        "persistence of networks",
        key(5),
        persistent(300, 24, None),
        80,
    );
    for case in [&each, &nets] {
        apply_all(ipvs, &case.steps()).await;
    }
    let servers = |case: &Case, from: &str| {
        let ask = || [(); 3].map(|()| request(Some(from), case.vip()));
        let answers = net.client.run(ask);
        let [a, b, c] = answers.map(|answer| answer.expect(case.name).0);
        assert!(a == b && b == c, "{}: {a}, {b}, {c}", case.name);
        a
    };
    assert_ne!(servers(&each, CLIENT), servers(&each, CLIENT_B));
    let one = servers(&nets, CLIENT);
    assert_eq!(servers(&nets, CLIENT_B), one);
    let table = until(ipvs, nets.name, |table| {
        let connections = |case: &Case| table[&case.key].stats.connections;
        let counts = (connections(&each), connections(&nets));
        (counts == (6, 6))
            .then_some(())
            .ok_or(format!("{counts:?}"))
    })
    .await;
    let templates = |case: &Case| {
        let dests = table[&case.key].dests.values();
        let mut counts: Vec<_> = dests.map(|d| d.persistent_connections).collect();
        counts.sort_unstable();
        counts
    };
    assert_eq!(templates(&each), [1, 1]);
    assert_eq!(templates(&nets), [0, 1]);
}

/// Open connections are read as active, ended ones as inactive; a change of weight alone, as the
/// difference of two tables makes it, keeps connections and counters, and a removal does not end
/// those of others.
async fn connections(net: &Net, ipvs: &mut Ipvs) {
    let key = ServiceKey::Addr(Protocol::Tcp, vip(false, 6, 80));
    let case = special("connections", key, service("rr"), 80);
    apply_all(ipvs, &case.steps()).await;
    let call = || {
        let mut call = Call::new(None, case.vip()).expect("connections");
        let (name, ..) = call.answer().expect("connections");
        (name, call)
    };
    let mut calls = net.client.run(|| [(); 4].map(|()| call()));
    let numbers = |table: &KernelTable| {
        (0..2)
            .map(|n| {
                let dest = &table[&key].dests[&case.dest(n)];
                (
                    dest.active_connections,
                    dest.inactive_connections,
                    dest.stats().connections,
                )
            })
            .collect::<Vec<_>>()
    };
    let expect = |wanted: Vec<(u32, u32, u64)>| {
        move |table: &KernelTable| {
            let found = numbers(table);
            (found == wanted)
                .then_some(())
                .ok_or(format!("{found:?}, not {wanted:?}"))
        }
    };
    let table = until(ipvs, "open connections", expect(vec![(2, 0, 2); 2])).await;

    let have: BTreeMap<_, _> = table.iter().map(|(k, s)| (*k, s.plain())).collect();
    let mut wanted = have.clone();
    let attrs = wanted
        .get_mut(&key)
        .unwrap()
        .dests
        .get_mut(&case.dest(0))
        .unwrap();
    attrs.weight = 0.try_into().unwrap();
    let steps = diff(&have, &wanted);
    assert!(matches!(steps[..], [Step::SetDest(..)]), "{steps:?}");
    apply_all(ipvs, &steps).await;
    for (name, call) in &mut calls {
        let (again, ..) = net
            .client
            .run(|| call.ask_again())
            .expect("a quiesced server");
        assert_eq!(again, *name);
    }
    // New ones go to the other alone.
    let [a, b] = net
        .client
        .run(|| [(); 2].map(|()| request(None, case.vip()).unwrap().0));
    assert_eq!([a.as_str(), b.as_str()], ["web2", "web2"]);
    until(
        ipvs,
        "a quiesced server",
        expect(vec![(2, 0, 2), (2, 2, 4)]),
    )
    .await;

    net.client.run(|| {
        for (_, call) in calls {
            call.close();
        }
    });
    until(
        ipvs,
        "ended connections",
        expect(vec![(0, 2, 2), (0, 4, 4)]),
    )
    .await;
}

/// One service's counters begin again, or all, by us and by ipvsadm.
async fn zeroing(ipvs: &mut Ipvs) {
    let counts = |table: &KernelTable| -> BTreeMap<ServiceKey, u64> {
        let sum = |state: &understudy::model::ServiceState| {
            let dests = state.dests.values().map(|d| d.stats().connections);
            state.stats.connections + dests.sum::<u64>()
        };
        table
            .iter()
            .map(|(key, state)| (*key, sum(state)))
            .collect()
    };
    let mut left = counts(&ipvs.table().await.unwrap());
    assert!(
        left.len() >= 7 && left.values().all(|count| *count > 0),
        "{left:?}"
    );
    let [first, second, ..] = left.keys().copied().collect::<Vec<_>>()[..] else {
        panic!()
    };
    ipvs.zero(Some(first)).await.unwrap();
    left.insert(first, 0);
    assert_eq!(counts(&ipvs.table().await.unwrap()), left);
    let ServiceKey::Addr(Protocol::Tcp, addr) = second else {
        panic!("{second}")
    };
    ipvsadm(&format!("-Z -t {addr}"));
    left.insert(second, 0);
    assert_eq!(counts(&ipvs.table().await.unwrap()), left);
    ipvs.zero(None).await.unwrap();
    left.values_mut().for_each(|count| *count = 0);
    assert_eq!(counts(&ipvs.table().await.unwrap()), left);
    let gone = ServiceKey::Addr(Protocol::Tcp, vip(false, 99, 80));
    let error = ipvs.zero(Some(gone)).await.unwrap_err();
    assert_eq!(error.kind(), "no_such_service", "{error:?}");
}
