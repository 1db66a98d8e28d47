//! What values must be, and what to write instead.

use std::{collections::BTreeMap, net::IpAddr, ops::Range, time::Duration};

use toml::Spanned;

use crate::{
    config::{Diagnostics, duration},
    model::PinDigest,
    provisioner::ssh::HostKey,
};

/// Longest time limit of a script: longer is a slip of the unit.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// What must be there once only.
#[derive(Debug, Default)]
pub(super) struct Seen(BTreeMap<String, usize>);

impl Seen {
    pub(super) fn once(
        &mut self,
        d: &mut Diagnostics,
        what: &str,
        value: String,
        at: Range<usize>,
    ) {
        let line = d.position(at.start).0;
        match self.0.get(&value) {
            Some(first) => d.push(at, format!("{what} {value} is already at line {first}")),
            None => {
                self.0.insert(value, line);
            }
        }
    }
}

pub(super) fn list<'n>(names: impl IntoIterator<Item = &'n String>) -> String {
    let names: Vec<_> = names.into_iter().map(String::as_str).collect();
    match names.as_slice() {
        [] => "none".to_owned(),
        _ => names.join(", "),
    }
}

pub(super) fn is_name(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    !text.is_empty() && text.len() <= 128 && !text.starts_with('.') && text.chars().all(fine)
}

pub(super) fn is_account(text: &str) -> bool {
    is_name(text) && !text.starts_with(['-', '+'])
}

/// Whether a secret can be of this name in a script's environment.
pub(super) fn is_variable(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let first = text.chars().next();
    first.is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && text.len() <= 128
        && text.chars().all(fine)
        && !text.starts_with("UNDERSTUDY_")
        && !["PATH", "HOME", "LC_ALL"].contains(&text)
}

pub(super) fn name(d: &mut Diagnostics, what: &str, found: &Spanned<String>) {
    if !is_name(found.get_ref()) {
        let message = format!(
            "{what} consists of 1 to 128 of A-Z, a-z, 0-9, '-', '_', '+' and '.', and does not \
             begin with '.'"
        );
        d.push(found.span(), message);
    }
}

pub(super) fn operating_system(d: &mut Diagnostics, os: &Spanned<String>) {
    let text = os.get_ref();
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    if text.is_empty() || !text.chars().all(fine) {
        let message = "`os` is ID-VERSION_ID of the server's /etc/os-release, as in debian-12";
        d.push(os.span(), message);
    }
}

pub(super) fn limit(d: &mut Diagnostics, text: &Spanned<String>) -> Option<Duration> {
    match duration::parse(text.get_ref()) {
        Err(e) => d.push(text.span(), e.to_string()),
        Ok(t) if t < Duration::from_secs(1) || t > MAX_TIMEOUT => {
            d.push(text.span(), "`timeout` is at least 1s and at most 24h");
        }
        Ok(t) => return Some(t),
    }
    None
}

/// What would go wrong with a script on a server.
pub(super) fn script_mistake(body: &str) -> Option<String> {
    let first = body.lines().next().unwrap_or_default().trim_end();
    if body.trim().is_empty() {
        return Some("the script is empty".to_owned());
    }
    if body.contains('\0') {
        return Some("the script contains a NUL byte".to_owned());
    }
    if body.contains("\r\n") {
        return Some("the script has Windows line ends (CR LF): convert it".to_owned());
    }
    let shell = ["#!/bin/sh", "#! /bin/sh", "#!/usr/bin/env sh"].contains(&first);
    if first.starts_with("#!") && !shell {
        return Some(format!(
            "begins with {first}, but scripts are run by /bin/sh, without options: write set -e \
             within, and call other interpreters from it"
        ));
    }
    None
}

pub(super) fn target_path(d: &mut Diagnostics, path: &Spanned<String>) {
    let text = path.get_ref();
    let sound = text.starts_with('/')
        && !text.contains(|c: char| c.is_control())
        && text
            .split('/')
            .skip(1)
            .all(|part| !["", ".", ".."].contains(&part));
    if !sound {
        let message =
            "`path` is the file's absolute path on the server, without '..', '.' and '//'";
        d.push(path.span(), message);
    }
}

pub(super) fn permissions(d: &mut Diagnostics, mode: &Spanned<String>) -> Option<u32> {
    let text = mode.get_ref();
    let octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let parsed = octal.then(|| u32::from_str_radix(text, 8).ok()).flatten();
    if parsed.is_none() {
        d.push(
            mode.span(),
            "`mode` is three or four octal digits, as in \"0644\"",
        );
    }
    parsed
}

pub(super) fn address(d: &mut Diagnostics, text: &Spanned<String>) -> Option<IpAddr> {
    let parsed: Option<IpAddr> = text.get_ref().parse().ok();
    match parsed {
        Some(a) if !a.is_unspecified() && !a.is_multicast() => Some(a),
        _ => {
            let message = format!(
                "{:?} is no address of a server: write an IPv4 or IPv6 address, without port",
                text.get_ref()
            );
            d.push(text.span(), message);
            None
        }
    }
}

/// Notes what is no host key.
pub(super) fn host_keys(d: &mut Diagnostics, keys: &[Spanned<String>]) {
    for key in keys {
        if let Err(mistake) = HostKey::parse(key.get_ref()) {
            d.push(key.span(), mistake.to_string());
        }
    }
}

/// The digest of a certificate.
pub(super) fn pin(d: &mut Diagnostics, text: &Spanned<String>) -> Option<PinDigest> {
    let digits: Vec<u32> = text
        .get_ref()
        .chars()
        .filter(|c| *c != ':')
        .map_while(|c| c.to_digit(16))
        .collect();
    let whole = digits.len() == text.get_ref().chars().filter(|c| *c != ':').count();
    let bytes: Option<Vec<u8>> = digits
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(high * 16 + low).ok(),
            _ => None,
        })
        .collect();
    let pin = bytes.filter(|_| whole).and_then(|b| b.try_into().ok());
    if pin.is_none() {
        let message = "`pin_sha256` is the certificate's SHA-256 digest, 64 hexadecimal digits: \
                       openssl x509 -noout -fingerprint -sha256";
        d.push(text.span(), message);
    }
    pin.map(PinDigest)
}
