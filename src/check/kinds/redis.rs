//! A Redis server answers `PING` (the protocol: RESP2 at redis.io), after a login if one is configured.
//!
//! Without credentials a server that asks for a password is alive, and passes. One that still loads its
//! data, or lost its primary, says so in an error and fails.

use tokio_util::bytes::BytesMut;

use super::{
    super::{Unprepared, call::Call},
    Kind,
    login::{Access, Login},
    talk::Talk,
};
use crate::model::{FailReason, LoginCheck, Phase};

/// No line that answers a probe is longer.
const LONGEST: usize = 4_096;

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct Redis(Access);

impl Kind for Redis {
    type Options = LoginCheck;

    fn prepare(options: &LoginCheck) -> Result<Self, Unprepared> {
        Access::prepare(options, &[]).map(Self)
    }

    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let mut talk = Talk::begin(call).await?;
        if let Some(client) = &self.0.tls {
            talk = talk.encrypt(client).await?;
        }
        if let Some(Login { user, password }) = &self.0.login {
            // A password alone is the one of `requirepass`; users came with Redis 6.
            let command = match user.as_str() {
                "" => command(&["AUTH", password]),
                user => command(&["AUTH", user, password]),
            };
            if let Err(line) = talk.ask(Phase::Login, &command, answer).await? {
                talk.call.quote(&line);
                return Err(match is_about_login(&line) {
                    true => FailReason::LoginRefused,
                    false => FailReason::Redis,
                });
            }
        }
        if let Some(database) = &self.0.database {
            let command = command(&["SELECT", database]);
            if let Err(line) = talk.ask(Phase::Login, &command, answer).await? {
                talk.call.quote(&line);
                return Err(FailReason::Redis);
            }
        }
        match talk.ask(Phase::Answer, &command(&["PING"]), answer).await? {
            Ok(line) if line == b"PONG" => Ok(()),
            Ok(line) => {
                talk.call.quote(&line);
                Err(FailReason::Garbled)
            }
            Err(line) if self.0.login.is_none() && line.starts_with(b"NOAUTH") => Ok(()),
            Err(line) => {
                talk.call.quote(&line);
                Err(FailReason::Redis)
            }
        }
    }
}

/// Whether an error in answer to `AUTH` is about the login: `WRONGPASS`, `ERR` of older servers and of
/// those that have no password. A server without room says `ERR` to whatever it is asked.
fn is_about_login(line: &[u8]) -> bool {
    let no_room = line.starts_with(b"ERR max number of clients");
    line.starts_with(b"WRONGPASS") || line.starts_with(b"ERR ") && !no_room
}

/// A command: an array of strings, each after its length.
fn command(words: &[&str]) -> Vec<u8> {
    let mut command = format!("*{}\r\n", words.len());
    for word in words {
        command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    command.into_bytes()
}

/// A line: good news, or an error.
type Line = Result<Vec<u8>, Vec<u8>>;

/// The next line: good news after `+`, an error after `-`. No command of this probe is answered
/// otherwise.
fn answer(seen: &mut BytesMut) -> Result<Option<Line>, FailReason> {
    let good = match seen.first() {
        None => return Ok(None),
        Some(b'+') => true,
        Some(b'-') => false,
        Some(_) => return Err(FailReason::Garbled),
    };
    let end = seen.windows(2).position(|two| two == b"\r\n");
    let Some(end) = end.filter(|end| *end <= LONGEST) else {
        return match seen.len() > LONGEST {
            true => Err(FailReason::TooLong),
            false => Ok(None),
        };
    };
    let whole = seen.split_to(end + 2);
    let line = whole.get(1..end).unwrap_or_default().to_vec();
    Ok(Some(if good { Ok(line) } else { Err(line) }))
}

#[cfg(test)]
mod tests;
