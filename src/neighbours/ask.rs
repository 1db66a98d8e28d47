//! Asks on an Ethernet whether anybody has an address, before it is put on.

use std::{collections::BTreeMap, future::pending, net::IpAddr, time::Duration};

use tokio::{
    task,
    time::{Instant, sleep_until},
};

use super::{
    socket::{Ear, Error, Mouth, join},
    wire::{self, Claim},
};
use crate::model::{FoundLink, Mac};

/// How often it is asked (RFC 5227: `PROBE_NUM`): a frame may be lost.
const TIMES: u32 = 3;

/// From one question to the next. RFC 5227 waits 1 to 2 s (`PROBE_MIN`, `PROBE_MAX`), 6 s in all, for links of
/// 1985; RFC 4862 asks once and waits 1 s. A virtual address that is missing is an outage: three times within
/// a second, as long as the kernel's own detection of IPv6 takes.
const BETWEEN: Duration = Duration::from_millis(300);

/// From the last question to the verdict.
const LAST: Duration = Duration::from_millis(400);

/// An address, and on which interface somebody might have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The address.
    pub addr: IpAddr,
    /// The interface.
    pub link: FoundLink,
}

/// Asks all questions at once, and waits a second for answers: who has each address, none where nobody
/// said so. What frames of `own` say is nobody else's word.
///
/// # Errors
///
/// Where it could not be asked. Of all questions, then: no answer means nothing.
pub async fn ask(
    questions: &[Question],
    own: &[Mac],
) -> Result<BTreeMap<IpAddr, Option<Mac>>, Error> {
    let mut found: BTreeMap<IpAddr, Option<Mac>> =
        questions.iter().map(|q| (q.addr, None)).collect();
    // First: what is answered at once is heard.
    let any = |v4: bool| questions.iter().any(|q| q.addr.is_ipv4() == v4);
    let arp = any(true).then(Ear::arp).transpose()?;
    let discovery = any(false).then(Ear::discovery).transpose()?;
    let mut groups = Vec::new();
    for question in questions {
        if let IpAddr::V6(addr) = question.addr {
            groups.push(join(addr, &question.link)?);
        }
    }
    let links: BTreeMap<u32, FoundLink> = questions
        .iter()
        .map(|q| (q.link.index, q.link.clone()))
        .collect();
    let opened = task::spawn_blocking(move || {
        let open = |(index, link): (u32, FoundLink)| Ok((index, Mouth::open(&link)?));
        let opened: Result<BTreeMap<_, _>, Error> = links.into_iter().map(open).collect();
        opened
    });
    let mouths = match opened.await {
        Ok(opened) => opened?,
        Err(error) => {
            return Err(Error::Socket {
                doing: "waiting",
                source: error.into(),
            });
        }
    };
    for round in 1..=TIMES {
        for Question { addr, link } in questions {
            if let (Some(None), Some(mouth)) = (found.get(addr), mouths.get(&link.index)) {
                mouth.say(&wire::probe(*addr, link.mac))?;
            }
        }
        let wait = if round == TIMES { LAST } else { BETWEEN };
        let until = Instant::now() + wait;
        loop {
            let (index, claim) = tokio::select! {
                // Cancel-safe, both: a claim is taken in the turn in which it is returned.
                heard = hear(arp.as_ref()) => heard?,
                heard = hear(discovery.as_ref()) => heard?,
                () = sleep_until(until) => break,
            };
            let concerns = |q: &&Question| q.addr == claim.addr && q.link.index == index;
            if questions.iter().any(|q| concerns(&q)) && !own.contains(&claim.mac) {
                found.insert(claim.addr, Some(claim.mac));
            }
        }
    }
    drop(groups);
    Ok(found)
}

async fn hear(ear: Option<&Ear>) -> Result<(u32, Claim), Error> {
    match ear {
        Some(ear) => ear.hear().await,
        None => pending().await,
    }
}
