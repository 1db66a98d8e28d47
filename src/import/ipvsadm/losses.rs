//! What a written table does not say, or says so that it is not read.

use std::{fmt, net::IpAddr};

use super::{Names, read, write};
use crate::model::{DestKey, ForwardMethod, Protocol, ServiceKey, Table};

/// A service or destination that does not come back from its file as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The service.
    pub service: ServiceKey,
    /// The destination, if it is about one.
    pub dest: Option<DestKey>,
    /// What becomes of it.
    pub how: How,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// It has no line: ipvsadm has no word for its forwarding method.
    LeftOut,
    /// Its line says something else.
    Otherwise(&'static str),
    /// Its line is refused, for this reason, and the file with it.
    Refused(String),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(dest) = self.dest {
            write!(f, "{dest} in ")?;
        }
        write!(f, "{}: ", self.service)?;
        match &self.how {
            How::LeftOut => {
                f.write_str("not in the file: ipvsadm has no word for forwarding method bypass")
            }
            How::Otherwise(what) => write!(f, "otherwise in the file: {what}"),
            How::Refused(why) => write!(f, "will not be read back: {why}"),
        }
    }
}

/// No written table has names.
struct Nobody;

impl Names for Nobody {
    fn host(&self, _name: &str) -> Result<Vec<IpAddr>, String> {
        Err("no names are looked up".to_owned())
    }

    fn port(&self, _name: &str, _protocol: Protocol) -> Option<u16> {
        None
    }
}

/// What is lost of a table in `text`, which [`write()`](super::write()) made of it: it is read back.
#[must_use]
pub fn losses(table: &Table, text: &str) -> Vec<Loss> {
    let (back, mistakes) = read::all(text, &Nobody, usize::MAX);
    let mut at = 0;
    let mut ends = Vec::new();
    for line in text.split_inclusive('\n') {
        at += line.len();
        ends.push(at);
    }
    let about: Vec<_> = write::lines(table).collect();
    let mut losses: Vec<_> = mistakes
        .into_iter()
        .filter_map(|(span, why)| {
            let (service, dest) = *about.get(ends.partition_point(|end| *end <= span.start))?;
            let how = How::Refused(why);
            Some(Loss { service, dest, how })
        })
        .collect();
    for (key, service) in table {
        let read = back.table.get(key);
        let mut lost = |dest, how| {
            let service = *key;
            losses.push(Loss { service, dest, how });
        };
        if read.is_some_and(|read| read.attrs != service.attrs) {
            let what = "some of its settings have no words there";
            lost(None, How::Otherwise(what));
        }
        for (dest, attrs) in &service.dests {
            let read = read.and_then(|read| read.dests.get(dest));
            if attrs.forward == ForwardMethod::Bypass {
                lost(Some(*dest), How::LeftOut);
            } else if read.is_some_and(|read| read != attrs) {
                let what = match attrs.forward {
                    ForwardMethod::Local => "-g stands for forwarding method local",
                    _ => "what its tunnel makes no use of is left out",
                };
                lost(Some(*dest), How::Otherwise(what));
            }
        }
    }
    losses.sort_by_key(|l| (l.service, l.dest));
    // A service that is refused is read otherwise only because of that.
    let refused: Vec<_> = losses
        .iter()
        .filter(|l| matches!(l.how, How::Refused(_)))
        .map(|l| (l.service, l.dest))
        .collect();
    losses.retain(|l| match l.how {
        How::Otherwise(_) => refused.binary_search(&(l.service, l.dest)).is_err(),
        How::LeftOut | How::Refused(_) => true,
    });
    losses
}
