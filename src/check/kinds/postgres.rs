//! A PostgreSQL server lets somebody in and answers a query (the manual's chapter on the
//! frontend/backend protocol, version 3.0).
//!
//! Without credentials a session is asked for in the name of `understudy`, and any word on how that one
//! has to prove itself passes, a refusal too: by then a server that starts up, shuts down or has no room
//! has said so, which it does not yet when TLS is asked for. Then the connection is closed in good
//! order: the server takes that for somebody who knows no password, and logs nothing. It does log a
//! line where its `pg_hba.conf` lets nobody in from here, or anybody without a password.

use fallible_iterator::FallibleIterator;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    },
    message::{
        backend::{ERROR_RESPONSE_TAG, ErrorResponseBody, Header, Message},
        frontend,
    },
};
use tokio_util::bytes::BytesMut;

use super::{
    super::{Unprepared, call::Call, tls},
    Kind,
    login::{Access, Login, NOBODY},
    talk::{LONGEST, Talk},
};
use crate::model::{FailReason, LoginCheck, Phase, SqlState};

/// See the module.
#[derive(Debug)]
pub(in crate::check) struct Postgres(Access);

impl Kind for Postgres {
    type Options = LoginCheck;

    fn prepare(options: &LoginCheck) -> Result<Self, Unprepared> {
        // The name is asked for since PostgreSQL 17, where TLS may begin at once.
        Access::prepare(options, &[b"postgresql"]).map(Self)
    }

    async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        let mut talk = Talk::begin(call).await?;
        if let Some(client) = &self.0.tls {
            talk = encrypt(talk, client).await?;
        }
        let user = self.0.login.as_ref().map_or(NOBODY, |login| &login.user);
        let mut startup = vec![("user", user), ("application_name", NOBODY)];
        startup.extend(self.0.database.as_deref().map(|name| ("database", name)));
        let startup = written(|out| frontend::startup_message(startup, out))?;
        let first = talk.ask(Phase::Greeting, &startup, message).await?;
        let result = match &self.0.login {
            None => greeted(&mut talk, first).await,
            Some(login) => serve(&mut talk, login, first).await,
        };
        let last = match result {
            // Whoever has no session yet ends none.
            Ok(Came::In) => written(|out| {
                frontend::terminate(out);
                Ok(())
            })?,
            _ => BytesMut::new(),
        };
        talk.end(&last).await;
        result.map(drop)
    }
}

/// How far a probe came that passed.
enum Came {
    ToTheDoor,
    In,
}

/// What a server says.
enum Said {
    Message(Message),
    /// An error as of version 2: what a server says that cannot start a process of its own for us.
    Old(Vec<u8>),
}

/// A request for TLS is answered by one byte.
enum Offer {
    Tls,
    None,
    Said(Said),
}

async fn encrypt<'c, 'v>(
    mut talk: Talk<'c, 'v>,
    client: &tls::Client,
) -> Result<Talk<'c, 'v>, FailReason> {
    let request = written(|out| {
        frontend::ssl_request(out);
        Ok(())
    })?;
    match talk.ask(Phase::Greeting, &request, offer).await? {
        Offer::Tls => talk.encrypt(client).await,
        Offer::None => Err(FailReason::NoTls),
        Offer::Said(said) => Err(refused(&mut talk, &said)),
    }
}

/// Without credentials.
async fn greeted(talk: &mut Talk<'_, '_>, first: Said) -> Result<Came, FailReason> {
    let mut said = first;
    if let Said::Message(Message::AuthenticationOk) = said {
        // Nobody is asked for a password: what is still to be said comes with the session.
        said = talk.ask(Phase::Greeting, &[], message).await?;
    }
    match &said {
        Said::Message(Message::ReadyForQuery(_)) => Ok(Came::In),
        Said::Message(
            Message::AuthenticationCleartextPassword
            | Message::AuthenticationGss
            | Message::AuthenticationKerberosV5
            | Message::AuthenticationMd5Password(_)
            | Message::AuthenticationSasl(_)
            | Message::AuthenticationScmCredential
            | Message::AuthenticationSspi,
        ) => Ok(Came::ToTheDoor),
        Said::Message(Message::ErrorResponse(body)) => match fault(body) {
            // 'Invalid authorization' and 'invalid catalog name': it knows who may come in.
            Some((SqlState([b'2', b'8', ..] | [b'3', b'D', ..]), _)) => Ok(Came::ToTheDoor),
            _ => Err(refused(talk, &said)),
        },
        _ => Err(refused(talk, &said)),
    }
}

/// With credentials.
async fn serve(talk: &mut Talk<'_, '_>, login: &Login, first: Said) -> Result<Came, FailReason> {
    log_in(talk, login, first).await?;
    match talk.ask(Phase::Login, &[], message).await? {
        Said::Message(Message::ReadyForQuery(_)) => {}
        said => return Err(refused(talk, &said)),
    }
    // An empty query goes through the server's parser and back, and touches nothing.
    let query = written(|out| frontend::query("", out))?;
    match talk.ask(Phase::Answer, &query, message).await? {
        Said::Message(Message::EmptyQueryResponse) => {}
        said => return Err(refused(talk, &said)),
    }
    match talk.ask(Phase::Answer, &[], message).await? {
        Said::Message(Message::ReadyForQuery(_)) => Ok(Came::In),
        said => Err(refused(talk, &said)),
    }
}

/// Proves who we are, until the server believes it.
async fn log_in(talk: &mut Talk<'_, '_>, login: &Login, first: Said) -> Result<(), FailReason> {
    let password = login.password.as_bytes();
    let mut scram = None;
    let mut said = first;
    loop {
        let answer = match &said {
            Said::Message(Message::AuthenticationOk) => return Ok(()),
            Said::Message(Message::AuthenticationCleartextPassword) if talk.is_encrypted() => {
                written(|out| frontend::password_message(password, out))?
            }
            Said::Message(Message::AuthenticationMd5Password(body)) => {
                let hash = md5_hash(login.user.as_bytes(), password, body.salt());
                written(|out| frontend::password_message(hash.as_bytes(), out))?
            }
            Said::Message(Message::AuthenticationSasl(body)) => {
                let known = body.mechanisms().any(|name| Ok(name == SCRAM_SHA_256));
                if !known.map_err(|_bytes| FailReason::Garbled)? {
                    return Err(unknown(talk, "by no kind of SASL that is known here"));
                }
                let begun = scram.insert(ScramSha256::new(password, ChannelBinding::unsupported()));
                written(|out| frontend::sasl_initial_response(SCRAM_SHA_256, begun.message(), out))?
            }
            Said::Message(Message::AuthenticationSaslContinue(body)) => {
                let begun = scram.take().ok_or(FailReason::Garbled)?;
                let begun = salted(talk, begun, body.data().to_vec()).await?;
                let answer = written(|out| frontend::sasl_response(begun.message(), out))?;
                scram = Some(begun);
                answer
            }
            Said::Message(Message::AuthenticationSaslFinal(body)) => {
                let mut begun = scram.take().ok_or(FailReason::Garbled)?;
                if let Err(error) = begun.finish(body.data()) {
                    talk.call.note(format_args!(
                        "the server does not know the password: {error}"
                    ));
                    return Err(FailReason::Garbled);
                }
                BytesMut::new()
            }
            Said::Message(Message::AuthenticationCleartextPassword) => {
                return Err(unknown(talk, "in clear, without TLS"));
            }
            Said::Message(
                Message::AuthenticationGss
                | Message::AuthenticationKerberosV5
                | Message::AuthenticationScmCredential
                | Message::AuthenticationSspi,
            ) => return Err(unknown(talk, "by Kerberos or the operating system")),
            said => return Err(refused(talk, said)),
        };
        said = talk.ask(Phase::Login, &answer, message).await?;
    }
}

/// Thousands of rounds of SHA-256, milliseconds: not on a thread that others wait for.
async fn salted(
    talk: &mut Talk<'_, '_>,
    mut scram: ScramSha256,
    salt: Vec<u8>,
) -> Result<ScramSha256, FailReason> {
    let salting = async {
        let salted = tokio::task::spawn_blocking(move || scram.update(&salt).map(|()| scram));
        let salted = salted.await.map_err(|_gone| FailReason::Local)?;
        salted.map_err(|_bad| FailReason::Garbled)
    };
    talk.call.hold(Phase::Login, salting).await
}

fn unknown(talk: &mut Talk<'_, '_>, how: &str) -> FailReason {
    talk.call
        .note(format_args!("the server wants the password {how}"));
    FailReason::LoginMethod
}

/// What an error, or a message out of turn, says of the server.
fn refused(talk: &mut Talk<'_, '_>, said: &Said) -> FailReason {
    match said {
        Said::Message(Message::ErrorResponse(body)) => {
            let Some((state, text)) = fault(body) else {
                return FailReason::Garbled;
            };
            talk.call.quote(&text);
            match &state.0 {
                b"28000" | b"28P01" => FailReason::LoginRefused,
                _ => FailReason::Postgres(state),
            }
        }
        Said::Message(_) => FailReason::Garbled,
        Said::Old(text) => {
            talk.call.quote(text);
            // It comes without a code; 'insufficient resources' is what it is.
            FailReason::Postgres(SqlState(*b"53000"))
        }
    }
}

/// Code and text of an error.
fn fault(body: &ErrorResponseBody) -> Option<(SqlState, Vec<u8>)> {
    let (mut code, mut text) = (None, Vec::new());
    let mut fields = body.fields();
    while let Some(field) = fields.next().ok()? {
        match field.type_() {
            b'C' => code = field.value_bytes().try_into().ok(),
            b'M' => text = field.value_bytes().to_vec(),
            _ => {}
        }
    }
    code.map(|code| (SqlState(code), text))
}

/// The next message, once it is whole. What a server may say at any time (chapter 'Asynchronous
/// Operations'), and at the beginning of each session, is passed over.
fn message(seen: &mut BytesMut) -> Result<Option<Said>, FailReason> {
    let garbled = |_bad| FailReason::Garbled;
    loop {
        let Some(header) = Header::parse(seen).map_err(garbled)? else {
            return Ok(None);
        };
        if usize::try_from(header.len()).is_ok_and(|length| length > LONGEST) {
            return old_error(header, seen);
        }
        match Message::parse(seen).map_err(garbled)? {
            None => return Ok(None),
            Some(
                Message::BackendKeyData(_)
                | Message::NoticeResponse(_)
                | Message::NotificationResponse(_)
                | Message::ParameterStatus(_),
            ) => {}
            Some(message) => return Ok(Some(Said::Message(message))),
        }
    }
}

/// What looks like a message too long: an error in version 2's form, which is a text up to a zero byte.
fn old_error(header: Header, seen: &mut BytesMut) -> Result<Option<Said>, FailReason> {
    if header.tag() != ERROR_RESPONSE_TAG || seen.len() > LONGEST {
        return Err(FailReason::Garbled);
    }
    let end = seen.iter().position(|byte| *byte == 0);
    Ok(end.map(|end| {
        let text = seen.split_to(end);
        let text = text.get(1..).unwrap_or_default();
        Said::Old(text.trim_ascii_end().to_vec())
    }))
}

fn offer(seen: &mut BytesMut) -> Result<Option<Offer>, FailReason> {
    let offer = match seen.first() {
        None => return Ok(None),
        Some(b'S') => Offer::Tls,
        Some(b'N') => Offer::None,
        Some(&ERROR_RESPONSE_TAG) => return Ok(message(seen)?.map(Offer::Said)),
        Some(_) => return Err(FailReason::Garbled),
    };
    drop(seen.split_to(1));
    Ok(Some(offer))
}

/// A message of ours. A text with a zero byte in it cannot be sent; none has one.
fn written(
    write: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
) -> Result<BytesMut, FailReason> {
    let mut out = BytesMut::new();
    match write(&mut out) {
        Ok(()) => Ok(out),
        Err(_zero_byte) => Err(FailReason::Local),
    }
}

#[cfg(test)]
mod tests;
