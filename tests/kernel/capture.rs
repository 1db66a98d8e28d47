//! Writes the fixtures in src/ipvs/codec/fixtures that say "nlmon": what ipvsadm, or the client where
//! ipvsadm has no word for it, and the kernel say to each other. They land in target/vm/results:
//! `make kernel ARGS='--ignored capture'`.

use std::{
    fs,
    net::UdpSocket,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    process::Command,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
        sockopt::RcvBuf,
    },
};
use understudy::{
    ipvs::Ipvs,
    model::{ForwardMethod, ServiceFlags, Step},
};

use crate::{
    ipvs::{apply, dest, flagged, in_namespace, key, server, service},
    lab::wait_until,
};

/// Netlink of the namespace, both ways, as an `nlmon` device sees it.
struct Monitor(OwnedFd);

impl Monitor {
    fn new() -> Self {
        let kind = SockFlag::SOCK_NONBLOCK;
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            kind,
            SockProtocol::EthAll,
        )
        .unwrap();
        setsockopt(&socket, RcvBuf, &(1 << 20)).unwrap();
        ip("link add nlmon0 type nlmon");
        ip("link set nlmon0 up");
        Self(socket)
    }

    /// The IPVS messages since the last call: whether each was a request, and its bytes.
    fn messages(&self) -> Vec<(bool, Vec<u8>)> {
        let mut found = Vec::new();
        let mut datagram = vec![0; 1 << 16];
        loop {
            let (length, from) =
                match recvfrom::<LinkAddr>(self.0.as_raw_fd(), datagram.as_mut_slice()) {
                    Ok((length, from)) => (length, from.unwrap()),
                    Err(Errno::EAGAIN) => return found,
                    Err(error) => panic!("{error}"),
                };
            // ARPHRD_NETLINK and NETLINK_GENERIC.
            if (from.hatype(), u16::from_be(from.protocol())) != (824, 16) {
                continue;
            }
            let mut rest = &datagram[..length];
            while let Some(head) = rest.first_chunk::<17>() {
                let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
                let kind = u16::from_ne_bytes([head[4], head[5]]);
                let length = usize::try_from(length).unwrap().min(rest.len());
                // Below are errors, ends of dumps and the family look-up; 14 and 15 are
                // IPVS_CMD_{SET,GET}_INFO, with which ipvsadm begins.
                if kind > 16 && ![14, 15].contains(&head[16]) {
                    // NLM_F_REQUEST.
                    found.push((head[6] & 1 != 0, rest[..length].to_vec()));
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    /// What went over netlink since the last call, as a part of a fixture. `requests` and `answers`:
    /// which of them.
    fn take(&self, text: &mut String, what: &str, requests: bool, answers: bool) {
        let messages = self.messages();
        for (wanted, request, who) in [
            (requests, true, ""),
            (answers, false, "the kernel in the answer to: "),
        ] {
            let mut of_these = messages.iter().filter(|m| wanted && m.0 == request);
            let Some(first) = of_these.next() else {
                assert!(!wanted, "{what}: nothing was seen");
                continue;
            };
            *text += &format!("# {who}{what} (nlmon)\n");
            for (_, bytes) in std::iter::once(first).chain(of_these) {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                *text += &format!("{hex}\n");
            }
        }
    }

    /// Runs ipvsadm; its request.
    fn request(&self, text: &mut String, arguments: &str) {
        run("ipvsadm", arguments);
        self.take(text, &format!("ipvsadm {arguments}"), true, false);
    }

    /// Runs ipvsadm; what the kernel answers.
    fn answer(&self, text: &mut String, arguments: &str) {
        run("ipvsadm", arguments);
        self.take(text, &format!("ipvsadm {arguments}"), false, true);
    }
}

fn run(program: &str, arguments: &str) {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{program} {arguments}: {output:?}");
}

fn ip(arguments: &str) {
    run("ip", arguments);
}

fn write(name: &str, text: &str) {
    let path = Path::new("target/vm/results").join(format!("{name}.hex"));
    fs::write(path, text).unwrap();
}

#[test]
#[ignore = "writes fixtures"]
fn capture() {
    in_namespace(async || {
        ip("link add dummy0 type dummy");
        ip("link set dummy0 up");
        ip("addr add 192.0.2.1/32 dev dummy0");
        ip("addr add 198.51.100.7/32 dev dummy0");
        let mut ipvs = Ipvs::connect().await.unwrap();
        let monitor = Monitor::new();

        let mut text = String::new();
        monitor.request(&mut text, "--set 901 121 301");
        // A zero leaves a timeout as it is.
        monitor.request(&mut text, "--set 0 122 0");
        run("ipvsadm", "-L --timeout");
        monitor.take(&mut text, "ipvsadm -L --timeout", true, true);
        write("timeouts", &text);

        let mut text = String::new();
        for daemon in [
            "master --mcast-interface dummy0 --syncid 5 --sync-maxlen 1400 --mcast-group 239.1.2.3 \
             --mcast-port 8850 --mcast-ttl 3",
            "backup --mcast-interface dummy0 --syncid 6 --sync-maxlen 1300 --mcast-group ff02::81:5 \
             --mcast-port 8851 --mcast-ttl 4",
        ] {
            monitor.request(&mut text, &format!("--start-daemon {daemon}"));
        }
        run("ipvsadm", "-L --daemon");
        monitor.take(&mut text, "ipvsadm -L --daemon", true, true);
        monitor.request(&mut text, "--stop-daemon master");
        monitor.request(&mut text, "--stop-daemon backup");
        write("daemons", &text);

        let mut text = String::new();
        monitor.request(&mut text, "--start-daemon master --mcast-interface dummy0");
        monitor.answer(&mut text, "-L --daemon");
        run("ipvsadm", "--stop-daemon master");
        write("daemon-defaults", &text);

        let web = key("tcp/192.0.2.1:80");
        let mut text = String::new();
        apply(&mut ipvs, Step::NewService(web, service("rr"))).await;
        monitor.messages();
        monitor.request(&mut text, "-Z");
        monitor.request(&mut text, "-Z -t 192.0.2.1:80");
        write("zero", &text);

        for (name, forward) in [
            ("dest-bypass", ForwardMethod::Bypass),
            ("dest-local", ForwardMethod::Local),
        ] {
            let mut text = String::new();
            let to = server(forward, 3);
            let step = Step::NewDest(web, dest("198.51.100.9:80"), to);
            apply(&mut ipvs, step.clone()).await;
            monitor.take(&mut text, &format!("the client: {step}"), true, false);
            assert_eq!(ipvs.dests(web).await.unwrap().len(), 1);
            monitor.take(
                &mut text,
                "the client's IPVS_CMD_GET_DEST (dump)",
                false,
                true,
            );
            apply(&mut ipvs, Step::DelDest(web, dest("198.51.100.9:80"))).await;
            monitor.messages();
            write(name, &text);
        }
        apply(&mut ipvs, Step::DelService(web)).await;
        monitor.messages();

        let mut text = String::new();
        monitor.request(&mut text, "-A -f 4294967295 -s rr");
        monitor.answer(&mut text, "-Ln");
        run("ipvsadm", "-C");
        write("service-fwmark-high", &text);

        // ipvsadm says nothing of the third flag's bit but by number, and of one packet on marks.
        let mut text = String::new();
        let all = ServiceFlags::SETTABLE;
        let step = Step::NewService(key("fwmark6/2147483648"), flagged("sh", all));
        monitor.messages();
        apply(&mut ipvs, step.clone()).await;
        monitor.take(
            &mut text,
            &format!("the client: {step}, all flags"),
            true,
            false,
        );
        monitor.answer(&mut text, "-Ln");
        run("ipvsadm", "-C");
        write("service-flags", &text);

        // Counters: three clients, 5 bytes there and 7 back.
        let dns = key("udp/192.0.2.1:53");
        apply(&mut ipvs, Step::NewService(dns, service("rr"))).await;
        let nat = server(ForwardMethod::Nat, 1);
        apply(
            &mut ipvs,
            Step::NewDest(dns, dest("198.51.100.7:5353"), nat),
        )
        .await;
        let resolver = UdpSocket::bind("198.51.100.7:5353").unwrap();
        for _ in 0..3 {
            let client = UdpSocket::bind("192.0.2.1:0").unwrap();
            client
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            client.send_to(b"where", "192.0.2.1:53").unwrap();
            let (_, from) = resolver.recv_from(&mut [0; 16]).unwrap();
            resolver.send_to(b"nowhere", from).unwrap();
            client.recv(&mut [0; 16]).unwrap();
        }
        // An estimate over two-second intervals: of so few connections it rounds to zero, of their
        // bytes not.
        let rate = || {
            let output = Command::new("ipvsadm").args(["-Ln", "--rate"]).output();
            let output = String::from_utf8(output.unwrap().stdout).unwrap();
            let last = output.lines().last().unwrap().to_owned();
            last.split_whitespace().nth(5) != Some("0")
        };
        wait_until("rate", Duration::from_secs(20), rate);
        monitor.messages();
        let mut text = String::new();
        let state = ipvs.service(dns).await.unwrap().unwrap();
        monitor.take(
            &mut text,
            &format!("the client's IPVS_CMD_GET_SERVICE, {:?}", state.stats),
            false,
            true,
        );
        let state = &ipvs.dests(dns).await.unwrap()[&dest("198.51.100.7:5353")];
        let numbers = (state.active_connections, state.inactive_connections);
        monitor.take(
            &mut text,
            &format!(
                "the client's IPVS_CMD_GET_DEST (dump), connections {numbers:?}, {:?}",
                state.stats()
            ),
            false,
            true,
        );
        write("counters", &text);
    });
}
