//! What others changed in a service, and what becomes of it. PURE.
//!
//! Three tables meet: what this director last brought the service to (the base), what it wants now,
//! and what the kernel has. Where base and want agree and the kernel does not, somebody else made
//! the difference. Where base and want differ, the change is this director's own and goes out
//! whatever the kernel has. A service without a base is new to this process: all that is configured
//! is made so.

use std::{borrow::Cow, collections::BTreeSet, fmt};

use crate::model::{
    DestAttrs, DestKey, DriftPolicy, Persistence, Service, ServiceAttrs, ServiceKey, ServiceState,
    Tunnel, TunnelType,
};

/// What of a service or destination differs. Values that the kernel takes only together are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// Whether the service is there.
    Service,
    /// Its scheduler.
    Scheduler,
    /// Its flags.
    Flags,
    /// Its persistence: timeout, prefix and engine.
    Persistence,
    /// Whether the destination is there.
    Destination,
    /// Its weight.
    Weight,
    /// Its forwarding method and tunnel.
    Forward,
    /// Its thresholds.
    Thresholds,
}

impl Field {
    /// The word for logs and metrics: a closed set.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Scheduler => "scheduler",
            Self::Flags => "flags",
            Self::Persistence => "persistence",
            Self::Destination => "destination",
            Self::Weight => "weight",
            Self::Forward => "forward",
            Self::Thresholds => "thresholds",
        }
    }
}

/// One thing that somebody else changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// In which service.
    pub service: ServiceKey,
    /// At which destination; `None` is the service itself.
    pub dest: Option<DestKey>,
    /// What of it.
    pub field: Field,
    /// What is wanted, in words.
    pub wanted: String,
    /// What the kernel has, in words.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(dest) = &self.dest {
            write!(f, "{dest}: ")?;
        }
        let (field, wanted, found) = (self.field.label(), &self.wanted, &self.found);
        write!(f, "{field} is {found}, wanted is {wanted}")
    }
}

/// What is to be made of a service, and what others changed in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged<'a> {
    /// What it shall be; `None` where somebody removed it and that is left so.
    pub service: Option<Cow<'a, Service>>,
    /// What others changed, whether it is left or put right.
    pub differences: Vec<Difference>,
}

/// Says what is to be made of service `key`. A destination in `out`, whose server failed, is never
/// part of it.
#[must_use]
pub fn merge<'a>(
    key: ServiceKey,
    base: Option<&Service>,
    want: &'a Service,
    out: &BTreeSet<DestKey>,
    actual: Option<&ServiceState>,
    policy: DriftPolicy,
) -> Merged<'a> {
    let mut merge = Merge {
        key,
        leave: policy != DriftPolicy::Repair,
        service: Cow::Borrowed(want),
        differences: Vec::new(),
    };
    let Some(base) = base else {
        return merge.done();
    };
    let Some(actual) = actual else {
        merge.differs(None, Field::Service, &"present", &"absent");
        let left = merge.leave;
        let mut done = merge.done();
        if left {
            done.service = None;
        }
        return done;
    };
    merge.attrs(&base.attrs, &want.attrs, &actual.attrs);
    for (dest, wanted) in &want.dests {
        match (base.dests.get(dest), actual.dests.get(dest)) {
            (Some(base), Some(found)) => merge.dest(*dest, base, wanted, &found.attrs),
            (Some(_), None) => {
                if merge.differs(Some(*dest), Field::Destination, &In(wanted), &"absent") {
                    merge.service.to_mut().dests.remove(dest);
                }
            }
            // This director adds it, or takes over what somebody added before.
            (None, _) => {}
        }
    }
    for (dest, found) in &actual.dests {
        let known = |dests: &Service| dests.dests.contains_key(dest);
        if known(want) || known(base) || out.contains(dest) {
            continue;
        }
        let found = found.attrs;
        if merge.differs(Some(*dest), Field::Destination, &"absent", &In(&found)) {
            merge.service.to_mut().dests.insert(*dest, found);
        }
    }
    merge.done()
}

struct Merge<'a> {
    key: ServiceKey,
    leave: bool,
    service: Cow<'a, Service>,
    differences: Vec<Difference>,
}

/// Whether somebody else made the difference.
fn foreign<T: PartialEq>(base: &T, wanted: &T, found: &T) -> bool {
    wanted != found && base == wanted
}

impl<'a> Merge<'a> {
    fn done(self) -> Merged<'a> {
        Merged {
            service: Some(self.service),
            differences: self.differences,
        }
    }

    /// Notes a difference; says whether it is left as it is.
    fn differs(
        &mut self,
        dest: Option<DestKey>,
        field: Field,
        wanted: &dyn fmt::Display,
        found: &dyn fmt::Display,
    ) -> bool {
        self.differences.push(Difference {
            service: self.key,
            dest,
            field,
            wanted: wanted.to_string(),
            found: found.to_string(),
        });
        self.leave
    }

    fn attrs(&mut self, base: &ServiceAttrs, wanted: &ServiceAttrs, found: &ServiceAttrs) {
        let (w, f) = (&wanted.scheduler, &found.scheduler);
        if foreign(&base.scheduler, w, f) && self.differs(None, Field::Scheduler, w, f) {
            self.service.to_mut().attrs.scheduler.clone_from(f);
        }
        let (w, f) = (wanted.flags, found.flags);
        if foreign(&base.flags, &w, &f) {
            let words = [format!("{:#x}", w.0), format!("{:#x}", f.0)];
            let [wanted, found] = &words;
            if self.differs(None, Field::Flags, wanted, found) {
                self.service.to_mut().attrs.flags = f;
            }
        }
        let (w, f) = (&wanted.persistence, &found.persistence);
        if foreign(&base.persistence, w, f)
            && self.differs(None, Field::Persistence, &Kept(w), &Kept(f))
        {
            self.service.to_mut().attrs.persistence.clone_from(f);
        }
    }

    fn dest(&mut self, at: DestKey, base: &DestAttrs, wanted: &DestAttrs, found: &DestAttrs) {
        if foreign(&base.weight, &wanted.weight, &found.weight)
            && self.differs(Some(at), Field::Weight, &wanted.weight, &found.weight)
            && let Some(dest) = self.service.to_mut().dests.get_mut(&at)
        {
            dest.weight = found.weight;
        }
        let way = |a: &DestAttrs| (a.forward, a.tunnel);
        if foreign(&way(base), &way(wanted), &way(found))
            && self.differs(Some(at), Field::Forward, &Way(wanted), &Way(found))
            && let Some(dest) = self.service.to_mut().dests.get_mut(&at)
        {
            (dest.forward, dest.tunnel) = way(found);
        }
        let limits = |a: &DestAttrs| (a.upper, a.lower);
        if foreign(&limits(base), &limits(wanted), &limits(found))
            && self.differs(Some(at), Field::Thresholds, &Limits(wanted), &Limits(found))
            && let Some(dest) = self.service.to_mut().dests.get_mut(&at)
        {
            (dest.upper, dest.lower) = limits(found);
        }
    }
}

/// A destination that is there.
struct In<'a>(&'a DestAttrs);

impl fmt::Display for In<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "present ({}, weight {})", Way(self.0), self.0.weight)
    }
}

/// Forwarding method and tunnel.
struct Way<'a>(&'a DestAttrs);

impl fmt::Display for Way<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DestAttrs {
            forward, tunnel, ..
        } = self.0;
        if *tunnel == Tunnel::default() {
            return forward.fmt(f);
        }
        let kind = match tunnel.kind {
            TunnelType::Ipip => "ipip",
            TunnelType::Gue => "gue",
            TunnelType::Gre => "gre",
        };
        write!(f, "{forward} {kind}")?;
        if tunnel.port != 0 {
            write!(f, " port {}", tunnel.port)?;
        }
        if tunnel.flags != 0 {
            write!(f, " flags {:#x}", tunnel.flags)?;
        }
        Ok(())
    }
}

/// Upper and lower threshold.
struct Limits<'a>(&'a DestAttrs);

impl fmt::Display for Limits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "upper {}, lower {}", self.0.upper, self.0.lower)
    }
}

/// Persistence.
struct Kept<'a>(&'a Option<Persistence>);

impl fmt::Display for Kept<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(p) = self.0 else {
            return f.write_str("none");
        };
        write!(f, "{} s, prefix {}", p.timeout_s, p.prefix)?;
        match &p.engine {
            Some(engine) => write!(f, ", engine {engine}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
