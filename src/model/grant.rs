//! Which certificate is which director, and what that director may ask for.

use std::{collections::BTreeSet, fmt, sync::Arc};

use super::{DirectorName, ServiceKey};

/// One director that may ask from another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its name.
    pub name: DirectorName,
    /// The name in its certificate (a DNS name or a URI among the alternative names), as [`Grant::canonical`] makes it.
    pub certificate: String,
    /// The virtual services that it may register and ask for; none: all.
    pub services: Option<BTreeSet<ServiceKey>>,
    /// The roles that the servers in them have; none: any.
    pub roles: Option<BTreeSet<String>>,
}

impl Grant {
    /// A name of a certificate as names are compared: DNS names know no case, URIs do.
    #[must_use]
    pub fn canonical(name: &str) -> String {
        match name.contains(':') {
            true => name.to_owned(),
            false => name.to_ascii_lowercase(),
        }
    }

    /// Whether this director may not have all.
    #[must_use]
    pub const fn is_limited(&self) -> bool {
        self.services.is_some() || self.roles.is_some()
    }

    /// The first of these services that this director may not ask for.
    #[must_use]
    pub fn refuses<'a>(
        &self,
        services: impl IntoIterator<Item = &'a ServiceKey>,
    ) -> Option<&'a ServiceKey> {
        let allowed = self.services.as_ref()?;
        services.into_iter().find(|key| !allowed.contains(key))
    }
}

/// All names in a certificate that was verified, canonical: DNS names and URIs among its alternative names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CertificateNames(Arc<BTreeSet<String>>);

impl CertificateNames {
    /// Of these names.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(Arc::new(names.into_iter().map(Grant::canonical).collect()))
    }

    /// The directors that a certificate with these names is: more than one only where somebody issued it so.
    pub fn grants<'a>(&'a self, all: &'a [Grant]) -> impl Iterator<Item = &'a Grant> {
        all.iter().filter(|g| self.0.contains(&g.certificate))
    }
}

impl fmt::Display for CertificateNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no name");
        }
        for (n, name) in self.0.iter().enumerate() {
            write!(f, "{}{name}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(name: &str, certificate: &str, services: Option<&[&str]>) -> Grant {
        let key = |s: &&str| s.parse().unwrap();
        Grant {
            name: name.parse().unwrap(),
            certificate: Grant::canonical(certificate),
            services: services.map(|all| all.iter().map(key).collect()),
            roles: None,
        }
    }

    #[test]
    fn a_certificate_is_the_director_whose_whole_name_it_has() {
        let all = [
            grant("lb1", "LB1.example", None),
            grant("lb2", "spiffe://fleet/lb2", None),
        ];
        let who = |names: &[&str]| -> Vec<String> {
            let names = CertificateNames::new(names.iter().copied());
            names.grants(&all).map(|g| g.name.to_string()).collect()
        };
        assert_eq!(who(&["lb1.example"]), ["lb1"]);
        assert_eq!(who(&["x", "Lb1.Example"]), ["lb1"]);
        assert_eq!(who(&["spiffe://fleet/lb2"]), ["lb2"]);
        for nobody in [
            "lb1",
            "1.example",
            "lb1.example.org",
            "*.example",
            "spiffe://fleet/LB2",
        ] {
            assert!(who(&[nobody]).is_empty(), "{nobody}");
        }
        assert!(who(&[]).is_empty());
    }

    #[test]
    fn only_listed_services_are_allowed_where_some_are_listed() {
        let [web, dns]: [ServiceKey; 2] =
            ["tcp/192.0.2.1:80", "udp/192.0.2.1:53"].map(|s| s.parse().unwrap());
        assert_eq!(grant("a", "a", None).refuses([&web, &dns]), None);
        let some = grant("a", "a", Some(&["tcp/192.0.2.1:80"]));
        assert_eq!(some.refuses([&web]), None);
        assert_eq!(some.refuses([&web, &dns]), Some(&dns));
        assert_eq!(grant("a", "a", Some(&[])).refuses([&web]), Some(&web));
    }
}
