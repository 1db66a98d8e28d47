//! `understudy ipvs save`.

use super::{Failure, block_on, connect, kernel, list::Hidden, plain, say};
use crate::{import::ipvsadm, model::Table};

pub(super) fn run(hidden: &Hidden) -> Result<(), Failure> {
    let mut table = block_on(async { connect().await?.table().await.map_err(kernel) })?;
    hidden.leave_out(&mut table);
    let (text, lost) = saved(&plain(&table));
    say(&text)?;
    lost.map_or(Ok(()), |lost| Err(Failure::Failed(lost)))
}

/// The text, and a line of each thing that does not come back from it as it is.
fn saved(table: &Table) -> (String, Option<String>) {
    let text = ipvsadm::write(table);
    let lost: Vec<_> = ipvsadm::losses(table, &text)
        .iter()
        .map(|loss| format!("save: {loss}"))
        .collect();
    (text, (!lost.is_empty()).then(|| lost.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        DestAttrs, DestKey, ForwardMethod, Scheduler, Service, ServiceAttrs, ServiceFlags, Tunnel,
        Weight,
    };

    #[test]
    fn what_is_lost_is_told_beside_the_text() {
        let dest = |n| DestKey {
            addr: format!("198.51.100.{n}").parse().unwrap(),
            port: 80,
        };
        let attrs = |forward| DestAttrs {
            weight: Weight::ONE,
            forward,
            upper: 0,
            lower: 0,
            tunnel: Tunnel::default(),
        };
        let mut service = Service {
            attrs: ServiceAttrs {
                scheduler: Scheduler("rr".to_owned()),
                flags: ServiceFlags(0),
                persistence: None,
            },
            dests: [(dest(1), attrs(ForwardMethod::Nat))].into(),
        };
        let key = "tcp/192.0.2.1:80".parse().unwrap();
        let lines = "-A -t 192.0.2.1:80 -s rr\n\
                     -a -t 192.0.2.1:80 -r 198.51.100.1:80 -m -w 1\n";
        let said = saved(&[(key, service.clone())].into());
        assert_eq!(said, (lines.to_owned(), None));

        service.dests.insert(dest(2), attrs(ForwardMethod::Bypass));
        let (text, lost) = saved(&[(key, service)].into());
        assert_eq!(text, lines);
        assert_eq!(
            lost.unwrap(),
            "save: 198.51.100.2:80 in tcp/192.0.2.1:80: not in the file: ipvsadm has no word for \
             forwarding method bypass"
        );
    }
}
