use std::net::IpAddr;

use super::*;
use crate::model::Protocol;

struct Nobody;

impl ipvsadm::Names for Nobody {
    fn host(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        Err(format!("{name} is unknown"))
    }

    fn port(&self, _name: &str, _protocol: Protocol) -> Option<u16> {
        None
    }
}

fn saved(text: &str) -> Saved {
    ipvsadm::parse(Path::new("saved"), text, &Nobody).unwrap()
}

const LIVE: &str = "\
-A -t 192.0.2.1:80 -s rr
-a -t 192.0.2.1:80 -r 198.51.100.1:80 -m -w 3 -x 100 -y 50
-a -t 192.0.2.1:80 -r 198.51.100.2:80 -m -w 3
-A -t 192.0.2.2:80 -s rr
-a -t 192.0.2.2:80 -r 198.51.100.1:80 -m -w 3 -x 100
";

const FILE: &str = "\
-A -t 192.0.2.1:80 -s wrr
-a -t 192.0.2.1:80 -r 198.51.100.1:80 -m -w 2
-a -t 192.0.2.1:80 -r 198.51.100.3:80 -m -w 1
-A -t 192.0.2.3:80 -s rr
";

#[test]
fn a_file_decides_on_its_services_alone() {
    let live = saved(LIVE).table;
    let file = File {
        name: Path::new("saved"),
        saved: saved(FILE),
    };
    let target = file.target(&live, false, true);
    let wanted = saved(
        "-A -t 192.0.2.1:80 -s wrr\n\
         -a -t 192.0.2.1:80 -r 198.51.100.1:80 -m -w 2 -x 100 -y 50\n\
         -a -t 192.0.2.1:80 -r 198.51.100.3:80 -m -w 1\n\
         -A -t 192.0.2.2:80 -s rr\n\
         -a -t 192.0.2.2:80 -r 198.51.100.1:80 -m -w 3 -x 100\n\
         -A -t 192.0.2.3:80 -s rr\n",
    );
    assert_eq!(target.table, wanted.table);
    assert_eq!((target.others, target.warnings.len()), (1, 0));

    let target = file.target(&live, true, false);
    assert_eq!(target.table, file.saved.table);
    assert_eq!(target.others, 0);
    assert_eq!(
        target.warnings,
        [
            "saved:2: warning: 198.51.100.1:80 in tcp/192.0.2.1:80 has thresholds (upper 100, \
          lower 50), of which the file says nothing: they are cleared (--keep-thresholds keeps \
          them)"
        ]
    );
}

#[test]
fn what_a_file_cannot_say_stays() {
    let mut live = saved(
        "-A -t 192.0.2.1:80 -s rr\n\
         -a -t 192.0.2.1:80 -r 198.51.100.1:80 -g -w 1\n\
         -a -t 192.0.2.1:80 -r 198.51.100.2:80 -g -w 1\n\
         -a -t 192.0.2.1:80 -r 198.51.100.3:80 -g -w 1\n",
    )
    .table;
    let dests = &mut live.values_mut().next().unwrap().dests;
    for (dest, forward) in dests.values_mut().zip([
        ForwardMethod::Local,
        ForwardMethod::Bypass,
        ForwardMethod::Dr,
    ]) {
        dest.forward = forward;
    }
    let text = ipvsadm::write(&live);
    let file = File {
        name: Path::new("saved"),
        saved: saved(&text),
    };
    for exact in [false, true] {
        let target = file.target(&live, exact, false);
        assert_eq!(plan::diff(&live, &target.table), []);
        assert_eq!(
            target.warnings,
            [
                "saved:2: note: 198.51.100.1:80 in tcp/192.0.2.1:80 stays local, which a file says \
                 as -g",
                "saved: note: 198.51.100.2:80 in tcp/192.0.2.1:80 stays: no file can name it, its \
                 forwarding method is bypass",
            ]
        );
    }
    // What the file says otherwise is as it says.
    let other = saved(&text.replace(" -g ", " -m "));
    let file = File {
        name: Path::new("saved"),
        saved: other,
    };
    let target = file.target(&live, false, false);
    let forwards: Vec<_> = target
        .table
        .values()
        .next()
        .unwrap()
        .dests
        .values()
        .collect();
    let forwards: Vec<_> = forwards.iter().map(|d| d.forward).collect();
    assert_eq!(
        forwards,
        [
            ForwardMethod::Nat,
            ForwardMethod::Bypass,
            ForwardMethod::Nat
        ]
    );
}

#[test]
fn what_takes_capacity_away_is_told_from_what_does_not() {
    let live = saved(LIVE).table;
    let to = saved(FILE).table;
    let (grow, shrink) = plan::phases(&live, &to);
    let text = |steps: &[Step]| {
        let lines: Vec<_> = steps.iter().map(ToString::to_string).collect();
        lines.join("\n")
    };
    assert_eq!(
        text(&grow),
        "change service tcp/192.0.2.1:80 (wrr)\n\
         add service tcp/192.0.2.3:80 (rr)\n\
         add 198.51.100.3:80 to tcp/192.0.2.1:80 (nat, weight 1)"
    );
    assert_eq!(
        text(&shrink),
        "change 198.51.100.1:80 in tcp/192.0.2.1:80 (nat, weight 2)\n\
         remove 198.51.100.2:80 from tcp/192.0.2.1:80\n\
         remove service tcp/192.0.2.2:80"
    );
}

#[test]
fn a_failure_says_where_and_what_is_left() {
    let live = saved(LIVE).table;
    let file = File {
        name: Path::new("saved"),
        saved: saved(FILE),
    };
    let steps = plan::diff(&live, &file.saved.table);
    let failed: Vec<_> = steps
        .into_iter()
        .map(|step| {
            let request = ipvs::Request::of(&step);
            let why = (!matches!(step, Step::SetDest(..)))
                .then_some(ipvs::Error::NotPermitted { request });
            Failed { step, why }
        })
        .collect();
    let done = Tally {
        added: 1,
        ..Tally::default()
    };
    let because = "not permitted, it needs CAP_NET_ADMIN";
    assert_eq!(
        file.failure(&failed, done),
        format!(
            "saved:1: cannot change virtual service tcp/192.0.2.1:80: {because}\n\
             saved:3: cannot add destination 198.51.100.3:80 to tcp/192.0.2.1:80: {because}\n\
             saved:1: cannot remove destination 198.51.100.2:80 from tcp/192.0.2.1:80: {because}\n\
             saved: cannot remove virtual service tcp/192.0.2.2:80: {because}\n\
             saved:4: cannot add virtual service tcp/192.0.2.3:80: {because}\n\
             6 changes not made (1 of them left because of another of the same service); \
             made: 1 added, 0 changed, 0 removed"
        )
    );
}

#[test]
fn what_was_made_before_an_error_is_said() {
    let done = Tally {
        added: 2,
        ..Tally::default()
    };
    let error = ipvs::Error::NotPermitted {
        request: ipvs::Request::of(&Step::DelService("fwmark/1".parse().unwrap())),
    };
    let text = |pass, done| match unread(&error, pass, done) {
        Failure::Failed(text) => text,
        Failure::Wrong(text) => panic!("{text}"),
        Failure::NotWell => panic!("it shows nothing"),
    };
    assert!(text(1, Tally::default()).ends_with("; nothing was changed"));
    assert!(text(2, done).ends_with("; made before: 2 added, 0 changed, 0 removed"));
    // The one step of the first pass may have been done without an answer.
    let none = text(2, Tally::default());
    assert!(!none.contains("nothing was changed"), "{none}");
}
