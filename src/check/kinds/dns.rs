//! A name server answers a question: keepalived's `DNS_CHECK`, over UDP or TCP (RFC 1035, RFC 7766).
//!
//! Over UDP an answer counts only if it carries the question's random number and the question itself
//! (RFC 5452, section 9): others are passed over. One that does not fit into its datagram is fetched
//! over TCP within the same time.

use std::net::IpAddr;

use domain::{
    base::{
        Message, MessageBuilder, Name, ParsedName, Rtype,
        iana::Class,
        zonefile_fmt::{DisplayKind, ZonefileFmt},
    },
    rdata::AllRecordData,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    super::{Unprepared, call::Call, errno, net},
    Kind,
};
use crate::{
    model::{DnsCheck, DnsType, FailReason, Phase},
    random,
};

/// Without EDNS no answer over UDP is longer than 512 bytes (RFC 1035, section 4.2.1). Some servers
/// are careless.
const LONGEST: usize = 4_096;

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct Dns {
    name: Name<Vec<u8>>,
    record: Rtype,
    tcp: bool,
    /// What one of the records has to be, as `plain` makes it.
    answer: Option<String>,
}

impl Kind for Dns {
    type Options = DnsCheck;

    fn prepare(options: &DnsCheck) -> Result<Self, Unprepared> {
        let name = Name::from_chars(options.name.chars());
        let name = name.map_err(|error| {
            Unprepared::Option(format!("{:?} is no domain name: {error}", options.name))
        })?;
        Ok(Self {
            name,
            record: rtype(options.record),
            tcp: options.tcp,
            answer: options.answer.as_deref().map(plain),
        })
    }

    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let [high, low, ..] = random::number().to_be_bytes();
        let query = self.query(u16::from_be_bytes([high, low]))?;
        let answer = if self.tcp {
            over_tcp(call, &query).await?
        } else {
            let answer = over_udp(call, &query).await?;
            if Message::from_slice(&answer).is_ok_and(|m| m.header().tc()) {
                let whole = over_tcp(call, &query).await;
                if whole.is_err() {
                    call.note("the answer over UDP was cut short, over TCP there is none");
                }
                whole?
            } else {
                answer
            }
        };
        let found = records(&answer, self.record)?;
        match &self.answer {
            Some(wanted) if !found.iter().any(|record| plain(record) == *wanted) => {
                call.quote(found.join(", ").as_bytes());
                Err(FailReason::Mismatch)
            }
            _ => Ok(()),
        }
    }
}

impl Dns {
    fn query(&self, id: u16) -> Result<Vec<u8>, FailReason> {
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(id);
        builder.header_mut().set_rd(true);
        let mut question = builder.question();
        let pushed = question.push((&self.name, self.record));
        pushed.map_err(|_never| FailReason::Local)?;
        Ok(question.finish())
    }
}

async fn over_udp(call: &mut Call<'_>, query: &[u8]) -> Result<Vec<u8>, FailReason> {
    let (at, via) = (call.at, call.via);
    let socket = call.hold(Phase::Connect, net::datagram(at, via)).await?;
    let mut seen = vec![0; LONGEST];
    let mut strange = None;
    let asking = async {
        let failed = |error| errno::reason(&error, at, Phase::Answer);
        socket.send(query).await.map_err(failed)?;
        loop {
            let length = net::receive(&socket, &mut seen).await.map_err(failed)?;
            let answer = seen.get(..length).unwrap_or_default();
            if fits(query, answer) {
                return Ok(length);
            }
            strange = Some(answer.to_vec());
        }
    };
    let asked = call.hold(Phase::Answer, asking).await;
    match (asked, strange) {
        (Err(FailReason::TimedOut(_)), Some(strange)) => {
            call.quote(&strange);
            Err(FailReason::Garbled)
        }
        (asked, _) => {
            seen.truncate(asked?);
            Ok(seen)
        }
    }
}

/// Each message is preceded by its length (RFC 1035, section 4.2.2), in one write with it (RFC 7766,
/// section 8).
async fn over_tcp(call: &mut Call<'_>, query: &[u8]) -> Result<Vec<u8>, FailReason> {
    let mut stream = call.connect_to_talk().await?;
    let at = call.at;
    let length = u16::try_from(query.len()).map_err(|_never| FailReason::Local)?;
    let framed = [&length.to_be_bytes(), query].concat();
    let asking = async {
        let asked = async {
            stream.write_all(&framed).await?;
            let length = stream.read_u16().await?;
            let mut answer = vec![0; usize::from(length)];
            stream.read_exact(&mut answer).await?;
            Ok(answer)
        };
        let asked: std::io::Result<_> = asked.await;
        asked.map_err(|error| errno::reason(&error, at, Phase::Answer))
    };
    let answer = call.hold(Phase::Answer, asking).await?;
    if !fits(query, &answer) {
        call.quote(&answer);
        return Err(FailReason::Garbled);
    }
    Ok(answer)
}

/// Whether it is an answer to this question. A server that did not understand the question, or does
/// not want it, may leave it out.
fn fits(query: &[u8], answer: &[u8]) -> bool {
    let (Ok(query), Ok(answer)) = (Message::from_slice(query), Message::from_slice(answer)) else {
        return false;
    };
    let (header, counts) = (answer.header(), answer.header_counts());
    let bare = counts.qdcount() == 0 && answer.is_error();
    answer.is_answer(query) || bare && header.qr() && header.id() == query.header().id()
}

/// The records of this type in an answer, as `dig` shows them; at least one. Those of a name that the
/// asked one is an alias of count (RFC 1034, section 3.6.2).
fn records(answer: &[u8], wanted: Rtype) -> Result<Vec<String>, FailReason> {
    let garbled = |_error| FailReason::Garbled;
    let message = Message::from_slice(answer).map_err(|_short| FailReason::Garbled)?;
    let code = message.header().rcode().to_int();
    if code != 0 {
        return Err(FailReason::DnsCode(code.into()));
    }
    let mut found = Vec::new();
    for record in message.answer().map_err(garbled)? {
        let record = record.map_err(garbled)?;
        if record.rtype() != wanted || record.class() != Class::IN {
            continue;
        }
        let record = record.to_any_record::<AllRecordData<_, ParsedName<_>>>();
        let record = record.map_err(garbled)?;
        let shown = record.data().display_zonefile(DisplayKind::Simple);
        found.push(shown.to_string());
    }
    if found.is_empty() {
        return Err(FailReason::NoRecord);
    }
    Ok(found)
}

/// A record without what makes no difference to people: case, quotes, the dot at a name's end, the
/// spelling of an address.
fn plain(record: &str) -> String {
    let word = |word: &str| {
        let word = word.strip_suffix('.').unwrap_or(word).to_ascii_lowercase();
        match word.parse::<IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => word,
        }
    };
    let unquoted = record.replace('"', "");
    let words: Vec<String> = unquoted.split_whitespace().map(word).collect();
    words.join(" ")
}

const fn rtype(record: DnsType) -> Rtype {
    match record {
        DnsType::A => Rtype::A,
        DnsType::Aaaa => Rtype::AAAA,
        DnsType::Caa => Rtype::CAA,
        DnsType::Cname => Rtype::CNAME,
        DnsType::Mx => Rtype::MX,
        DnsType::Ns => Rtype::NS,
        DnsType::Ptr => Rtype::PTR,
        DnsType::Soa => Rtype::SOA,
        DnsType::Srv => Rtype::SRV,
        DnsType::Txt => Rtype::TXT,
    }
}

#[cfg(test)]
mod tests;
