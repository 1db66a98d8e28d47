//! The messages of MySQL's protocol that a login takes. PURE.
//!
//! Names and numbers are those of the chapter on the client/server protocol in the MySQL source's
//! documentation, `page_protocol_connection_phase`; `MariaDB` speaks the same.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio_util::bytes::BytesMut;

use super::super::talk::LONGEST;
use crate::model::FailReason;

const CLIENT_LONG_PASSWORD: u32 = 1;
const CLIENT_CONNECT_WITH_DB: u32 = 1 << 3;
const CLIENT_PROTOCOL_41: u32 = 1 << 9;
pub(super) const CLIENT_SSL: u32 = 1 << 11;
const CLIENT_SECURE_CONNECTION: u32 = 1 << 15;
const CLIENT_PLUGIN_AUTH: u32 = 1 << 19;

/// What a server has to know: all since 4.1 of the year 2004 do.
pub(super) const NEEDED: u32 = CLIENT_PROTOCOL_41 | CLIENT_SECURE_CONNECTION;

/// `utf8mb3_general_ci`, which every version knows.
const CHARSET: u8 = 33;

const LARGEST_PACKET: u32 = 1 << 24;

/// The methods of a login.
pub(super) const NATIVE: &[u8] = b"mysql_native_password";
pub(super) const CACHING: &[u8] = b"caching_sha2_password";
pub(super) const SHA256: &[u8] = b"sha256_password";
pub(super) const CLEAR: &[u8] = b"mysql_clear_password";

/// A packet: its number in the exchange, and what is in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) sequence: u8,
    pub(super) body: BytesMut,
}

/// The next packet, once it is whole.
pub(super) fn packet(seen: &mut BytesMut) -> Result<Option<Packet>, FailReason> {
    let &[low, middle, high, sequence, ref rest @ ..] = &**seen else {
        return Ok(None);
    };
    let length = u32::from_le_bytes([low, middle, high, 0]);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > LONGEST {
        return Err(FailReason::Garbled);
    }
    if rest.len() < length {
        return Ok(None);
    }
    let mut body = seen.split_to(4 + length);
    drop(body.split_to(4));
    Ok(Some(Packet { sequence, body }))
}

/// A packet of ours. Ours are shorter than a packet can be.
pub(super) fn framed(sequence: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or_default();
    let [low, middle, high, _] = length.to_le_bytes();
    [&[low, middle, high, sequence], body].concat()
}

/// `Protocol::HandshakeV10`, what we need of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) capabilities: u32,
    pub(super) salt: Vec<u8>,
    pub(super) method: Vec<u8>,
}

/// `ERR_Packet`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) text: Vec<u8>,
}

/// A server's first word.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opening {
    Greeting(Greeting),
    Refusal(Refusal),
}

/// Reads it.
pub(super) fn opening(body: &[u8]) -> Option<Opening> {
    match body {
        [0xff, rest @ ..] => refusal(rest).map(Opening::Refusal),
        [10, rest @ ..] => greeting(rest).map(Opening::Greeting),
        _ => None,
    }
}

fn greeting(mut rest: &[u8]) -> Option<Greeting> {
    let _version = until_zero(&mut rest)?;
    let _thread = take::<4>(&mut rest)?;
    let mut salt = take::<8>(&mut rest)?.to_vec();
    let _filler = take::<1>(&mut rest)?;
    let [a, b] = take(&mut rest)?;
    let _charset_and_status = take::<3>(&mut rest)?;
    let [c, d, salt_length] = take(&mut rest)?;
    let capabilities = u32::from_le_bytes([a, b, c, d]);
    let _reserved = take::<10>(&mut rest)?;
    let length = usize::from(salt_length).saturating_sub(8).max(13);
    let (second, mut rest) = rest.split_at_checked(length.min(rest.len()))?;
    salt.extend(second.strip_suffix(&[0]).unwrap_or(second));
    let method = match capabilities & CLIENT_PLUGIN_AUTH {
        0 => NATIVE,
        // Some versions leave out the zero at its end.
        _ => until_zero(&mut rest).unwrap_or(rest),
    };
    Some(Greeting {
        capabilities,
        salt,
        method: method.to_vec(),
    })
}

fn refusal(mut rest: &[u8]) -> Option<Refusal> {
    let code = u16::from_le_bytes(take(&mut rest)?);
    // An SQLSTATE stands before the text once the client has said that it knows of them.
    let text = match rest {
        [b'#', _, _, _, _, _, text @ ..] => text,
        text => text,
    };
    Some(Refusal {
        code,
        text: text.to_vec(),
    })
}

/// What comes in the course of a login, and in answer to a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Ok,
    Refusal(Refusal),
    /// `Protocol::AuthSwitchRequest`.
    Switch {
        method: Vec<u8>,
        salt: Vec<u8>,
    },
    /// The same for the method of before 4.1, that nobody should use.
    OldSwitch,
    /// `Protocol::AuthMoreData`.
    More(Vec<u8>),
}

/// Reads it.
pub(super) fn reply(body: &[u8]) -> Option<Reply> {
    Some(match body {
        [0, ..] => Reply::Ok,
        [1, data @ ..] => Reply::More(data.to_vec()),
        [0xff, rest @ ..] => Reply::Refusal(refusal(rest)?),
        [0xfe] => Reply::OldSwitch,
        [0xfe, rest @ ..] => {
            let mut rest = rest;
            let method = until_zero(&mut rest)?.to_vec();
            let salt = rest.strip_suffix(&[0]).unwrap_or(rest).to_vec();
            Reply::Switch { method, salt }
        }
        _ => return None,
    })
}

/// `Protocol::SSLRequest`: the first of a response, before the user.
pub(super) fn ssl_request(database: bool) -> Vec<u8> {
    response_head(CLIENT_SSL, database)
}

fn response_head(extra: u32, database: bool) -> Vec<u8> {
    let database = if database { CLIENT_CONNECT_WITH_DB } else { 0 };
    let base = CLIENT_LONG_PASSWORD | CLIENT_PROTOCOL_41 | CLIENT_SECURE_CONNECTION;
    let capabilities = base | CLIENT_PLUGIN_AUTH | database | extra;
    let mut head = capabilities.to_le_bytes().to_vec();
    head.extend(LARGEST_PACKET.to_le_bytes());
    head.push(CHARSET);
    head.extend([0; 23]);
    head
}

/// `Protocol::HandshakeResponse41`. `proof` is at most 32 bytes: a password in clear is only ever sent
/// later.
pub(super) fn response(
    encrypted: bool,
    user: &str,
    proof: &[u8],
    database: Option<&str>,
    method: &[u8],
) -> Vec<u8> {
    let extra = if encrypted { CLIENT_SSL } else { 0 };
    let mut response = response_head(extra, database.is_some());
    response.extend(user.as_bytes());
    response.push(0);
    response.push(u8::try_from(proof.len()).unwrap_or_default());
    response.extend(proof);
    if let Some(database) = database {
        response.extend(database.as_bytes());
        response.push(0);
    }
    response.extend(method);
    response.push(0);
    response
}

/// `mysql_native_password`: `SHA1(password) ^ SHA1(salt + SHA1(SHA1(password)))`.
pub(super) fn native(password: &[u8], salt: &[u8]) -> Vec<u8> {
    if password.is_empty() {
        return Vec::new();
    }
    let once = Sha1::digest(password);
    let twice = Sha1::digest(once);
    let salted = Sha1::new()
        .chain_update(salt)
        .chain_update(twice)
        .finalize();
    once.iter().zip(salted).map(|(a, b)| a ^ b).collect()
}

/// `caching_sha2_password`: `SHA256(password) ^ SHA256(SHA256(SHA256(password)) + salt)`.
pub(super) fn caching(password: &[u8], salt: &[u8]) -> Vec<u8> {
    if password.is_empty() {
        return Vec::new();
    }
    let once = Sha256::digest(password);
    let twice = Sha256::digest(once);
    let salted = Sha256::new()
        .chain_update(twice)
        .chain_update(salt)
        .finalize();
    once.iter().zip(salted).map(|(a, b)| a ^ b).collect()
}

/// A password as it is sent under TLS.
pub(super) fn clear(password: &[u8]) -> Vec<u8> {
    [password, &[0]].concat()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(*taken)
}

fn until_zero<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|byte| *byte == 0)?;
    let (text, left) = rest.split_at_checked(end)?;
    *rest = left.get(1..)?;
    Some(text)
}
