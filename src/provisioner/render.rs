//! Service configuration files and scripts' variables for one spare. PURE: text in, text out.

use std::{collections::BTreeMap, fmt::Write, net::SocketAddr};

use minijinja::{
    AutoEscape, Environment, ErrorKind, State, UndefinedBehavior, Value, syntax::SyntaxConfig,
};
use sha2::{Digest, Sha256};

use crate::{
    model::{
        Family, ForwardMethod, Protocol, ServiceKey,
        inventory::{Server, ServiceFile, Variables},
    },
    provisioner::{
        order::RenderedFile,
        plan::{Brief, SlotService, address_for},
        sealed::{Sealed, placeholder},
    },
};

/// A service configuration file that is no valid template, or uses what is not there.
#[derive(Debug, thiserror::Error)]
#[error("the service configuration file {path} of {software} in {domain} cannot be rendered")]
pub struct RenderError {
    /// Path on the server.
    pub path: String,
    /// Software.
    pub software: String,
    /// Domain identifier.
    pub domain: String,
    /// What the template engine says, with the line.
    #[source]
    pub source: minijinja::Error,
}

impl RenderError {
    fn of(file: &ServiceFile, source: minijinja::Error) -> Self {
        Self {
            path: file.path.clone(),
            software: file.software.clone(),
            domain: file.domain.clone(),
            source,
        }
    }

    /// The whole in one line, for the reason of a replacement that waits.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{self}: {}", self.source)
    }
}

/// The engine: an undefined variable is an error, nothing is escaped, a final newline stays, a line
/// that holds only a block leaves nothing behind.
fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.add_function("secret", secret);
    // Only delimiters can be wrong, and they are the usual ones.
    if let Ok(syntax) = SyntaxConfig::builder()
        .keep_trailing_newline(true)
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
    {
        env.set_syntax(syntax);
    }
    env
}

/// Whether a file's template can be read at all; what it uses is known only with a spare.
///
/// # Errors
/// [`RenderError`] with the line.
pub fn parse(file: &ServiceFile) -> Result<(), RenderError> {
    if file.template {
        environment()
            .template_from_named_str(&file.path, &file.body)
            .map_err(|e| RenderError::of(file, e))?;
    }
    Ok(())
}

/// A file as it is to lie on the spare.
///
/// # Errors
/// [`RenderError`] where the template is not valid or uses an undefined variable.
pub fn file(
    brief: &Brief,
    spare: &Server,
    file: &ServiceFile,
) -> Result<RenderedFile, RenderError> {
    let (text, secrets) = if file.template {
        template(file, context(brief, spare, file)).map_err(|e| RenderError::of(file, e))?
    } else {
        (file.body.clone(), Vec::new())
    };
    let body = text.into_bytes();
    Ok(RenderedFile {
        path: file.path.clone(),
        sha256: hex(&Sha256::digest(&body)),
        body,
        mode: file.mode,
        owner: file.owner.clone(),
        group: file.group.clone(),
        validate: file.validate.clone(),
        secrets,
    })
}

/// The text, with the secrets that it names: their values come in when the file is placed.
fn template(file: &ServiceFile, context: Value) -> Result<(String, Vec<Sealed>), minijinja::Error> {
    let env = environment();
    let template = env.template_from_named_str(&file.path, &file.body)?;
    let captured = template.render_captured(context)?;
    let called = captured.state().get_temp(SECRETS).unwrap_or_default();
    let text = captured.into_output();
    let mut names = Vec::new();
    for name in called.try_iter().into_iter().flatten() {
        names.push(name.as_str().unwrap_or_default().to_owned());
    }
    let mut secrets: Vec<Sealed> = Vec::new();
    for name in &names {
        let calls = names.iter().filter(|n| *n == name).count();
        if text.matches(&placeholder(name)).count() != calls {
            let detail = format!(
                "secret({name:?}) can only be written as it is: no filter, no condition, no length"
            );
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, detail));
        }
        if !secrets.iter().any(|s| s.name == *name) {
            secrets.push(Sealed::named(name));
        }
    }
    Ok((text, secrets))
}

/// Where the calls of `secret` are noted while a template is rendered.
const SECRETS: &str = "secrets";

/// The secrets that a template asks for by name, as far as they can be seen without a spare.
pub(super) fn secrets_named(file: &ServiceFile) -> impl Iterator<Item = &str> {
    let body = if file.template {
        file.body.as_str()
    } else {
        ""
    };
    body.match_indices("secret").filter_map(|(at, word)| {
        let rest = body.get(at + word.len()..)?.trim_start();
        let rest = rest.strip_prefix('(')?.trim_start();
        let quote = rest.chars().next().filter(|c| "'\"".contains(*c))?;
        rest.get(1..)?.split_once(quote).map(|(name, _)| name)
    })
}

/// What `secret` leaves in the text.
fn secret(state: &mut State<'_, '_>, name: String) -> Result<String, minijinja::Error> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fine) {
        let detail = format!("{name:?} is no name of a secret: A-Z, a-z, 0-9, '.', '_', '-'");
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, detail));
    }
    let mut called: Vec<Value> = match state.get_temp(SECRETS) {
        Some(list) => list.try_iter()?.collect(),
        None => Vec::new(),
    };
    called.push(Value::from(name.clone()));
    state.set_temp(SECRETS, Value::from(called));
    Ok(placeholder(&name))
}

fn context(brief: &Brief, spare: &Server, file: &ServiceFile) -> Value {
    let text = |s: &str| Value::from(s.to_owned());
    let mut server = BTreeMap::from([
        ("name", text(&spare.name)),
        (
            "addresses",
            spare.addresses.iter().map(ToString::to_string).collect(),
        ),
    ]);
    // Left out where there is none, so that a template which needs it fails instead of writing "none".
    for (key, address) in addresses(spare) {
        server.insert(key, Value::from(address));
    }
    let services: Value = brief.services.iter().map(|s| service(s, spare)).collect();
    Value::from(BTreeMap::from([
        ("role", text(&brief.role.code)),
        ("domain", text(&brief.role.domain)),
        ("os", text(&brief.role.os)),
        ("software", text(&file.software)),
        ("failed", Value::from(failed(brief))),
        ("server", Value::from(server)),
        ("services", services),
    ]))
}

/// `address` (the first), `address_v4`, `address_v6`: those there are.
fn addresses(spare: &Server) -> impl Iterator<Item = (&'static str, String)> {
    [
        ("address", spare.addresses.first().copied()),
        ("address_v4", address_for(spare, Family::V4)),
        ("address_v6", address_for(spare, Family::V6)),
    ]
    .into_iter()
    .filter_map(|(key, a)| Some((key, a?.to_string())))
}

fn service(slot: &SlotService, spare: &Server) -> Value {
    let mut map = BTreeMap::from([
        ("name", Value::from(slot.service.key.to_string())),
        ("forward", Value::from(method(slot.service.forward))),
        ("scheduler", Value::from(slot.service.scheduler.0.clone())),
        ("real_port", Value::from(slot.port)),
    ]);
    if let Some(address) = address_for(spare, slot.family) {
        map.insert("address", Value::from(address.to_string()));
    }
    match slot.service.key {
        ServiceKey::Addr(protocol, at) => {
            map.insert("vip", Value::from(at.ip().to_string()));
            map.insert("port", Value::from(at.port()));
            map.insert("protocol", Value::from(word(protocol)));
        }
        ServiceKey::Fwmark(_, mark) => {
            map.insert("fwmark", Value::from(mark));
        }
    }
    Value::from(map)
}

const fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

const fn method(forward: ForwardMethod) -> &'static str {
    match forward {
        ForwardMethod::Nat => "nat",
        ForwardMethod::Local => "local",
        ForwardMethod::Tun => "tun",
        ForwardMethod::Dr => "dr",
        ForwardMethod::Bypass => "bypass",
    }
}

/// The environment of a software's script: `UNDERSTUDY_ROLE`, `_DOMAIN`, `_OS`, `_SOFTWARE`,
/// `_SERVER`, `_ADDRESSES` (all, with blanks between), `_ADDRESS`, `_ADDRESS_V4`, `_ADDRESS_V6`,
/// `_FAILED`, `_SERVICES` (`tcp/192.0.2.1:80,dr,8080` each) and `_VIPS_LOCAL`: the virtual addresses
/// that the server itself must hold, those of direct routing and tunnels.
#[must_use]
pub fn variables(brief: &Brief, spare: &Server, software: &str) -> Variables {
    let list = |items: &mut dyn Iterator<Item = String>| {
        let mut unique: Vec<String> = Vec::new();
        for item in items {
            if !unique.contains(&item) {
                unique.push(item);
            }
        }
        unique.join(" ")
    };
    let mut variables =
        Variables::from([
            ("ROLE".to_owned(), brief.role.code.clone()),
            ("DOMAIN".to_owned(), brief.role.domain.clone()),
            ("OS".to_owned(), brief.role.os.clone()),
            ("SOFTWARE".to_owned(), software.to_owned()),
            ("SERVER".to_owned(), spare.name.clone()),
            (
                "ADDRESSES".to_owned(),
                list(&mut spare.addresses.iter().map(ToString::to_string)),
            ),
            ("FAILED".to_owned(), failed(brief)),
            (
                "SERVICES".to_owned(),
                list(&mut brief.services.iter().map(|s| {
                    format!("{},{},{}", s.service.key, method(s.service.forward), s.port)
                })),
            ),
            (
                "VIPS_LOCAL".to_owned(),
                list(
                    &mut brief
                        .services
                        .iter()
                        .filter_map(|s| local_vip(s).map(|a| a.ip().to_string())),
                ),
            ),
        ]);
    for (key, address) in addresses(spare) {
        variables.insert(key.to_uppercase(), address);
    }
    variables
        .into_iter()
        .map(|(key, value)| (format!("UNDERSTUDY_{key}"), value))
        .collect()
}

/// Empty where nobody has failed yet: the spare is configured beforehand.
fn failed(brief: &Brief) -> String {
    brief.failed.map(|a| a.to_string()).unwrap_or_default()
}

pub(super) fn local_vip(slot: &SlotService) -> Option<SocketAddr> {
    match (slot.service.key, slot.service.forward) {
        (ServiceKey::Addr(_, at), ForwardMethod::Dr | ForwardMethod::Tun) => Some(at),
        _ => None,
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{b:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
