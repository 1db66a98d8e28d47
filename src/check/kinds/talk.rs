//! A talk in messages over one connection, within the time of its probe.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;
use tokio_util::bytes::BytesMut;

use super::super::{call::Call, errno, tls};
use crate::model::{FailReason, Phase};

/// No message that a probe waits for is longer.
pub(super) const LONGEST: usize = 64 * 1024;

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

impl Stream {
    fn wire(&mut self) -> &mut dyn Wire {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream,
        }
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Talk<'c, 'v> {
    pub(super) call: &'c mut Call<'v>,
    stream: Stream,
    /// What has come and was not understood yet.
    seen: BytesMut,
}

impl<'c, 'v> Talk<'c, 'v> {
    /// Connects.
    pub(super) async fn begin(call: &'c mut Call<'v>) -> Result<Self, FailReason> {
        let stream = Stream::Plain(call.connect_to_talk().await?);
        Ok(Self {
            call,
            stream,
            seen: BytesMut::new(),
        })
    }

    /// Goes on under TLS.
    pub(super) async fn encrypt(self, client: &tls::Client) -> Result<Self, FailReason> {
        let Self { call, stream, seen } = self;
        let Stream::Plain(stream) = stream else {
            return Err(FailReason::Garbled);
        };
        if !seen.is_empty() {
            // What came in clear must not pass for something said under TLS (CVE-2021-23222).
            call.quote(&seen);
            return Err(FailReason::Garbled);
        }
        let stream = client.handshake(call, stream).await?;
        Ok(Self {
            call,
            stream: Stream::Tls(Box::new(stream)),
            seen,
        })
    }

    /// This host's end of the connection.
    pub(super) fn own(&self) -> io::Result<SocketAddr> {
        self.stream.tcp().local_addr()
    }

    /// Whether nobody listens in.
    pub(super) const fn is_encrypted(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }

    /// Sends `message` and reads until `understand` has taken an answer from what came.
    pub(super) async fn ask<T>(
        &mut self,
        phase: Phase,
        message: &[u8],
        understand: impl Fn(&mut BytesMut) -> Result<Option<T>, FailReason>,
    ) -> Result<T, FailReason> {
        let at = self.call.at;
        let wire = self.stream.wire();
        let seen = &mut self.seen;
        let asking = async {
            let sent = send(wire, message).await;
            loop {
                if let Some(answer) = understand(seen)? {
                    return Ok(answer);
                }
                // A server that has no room says so and closes before it is asked: its last word is
                // there although nothing could be sent.
                match (wire.read_buf(seen).await, &sent) {
                    (Ok(0), Ok(())) => return Err(FailReason::Reset),
                    (Err(error), Ok(())) => return Err(errno::reason(&error, at, phase)),
                    (Ok(0) | Err(_), Err(error)) => {
                        return Err(errno::reason(error, at, phase));
                    }
                    (Ok(_), _) => {}
                }
            }
        };
        let asked = self.call.hold(phase, asking).await;
        if matches!(asked, Err(FailReason::Garbled)) {
            self.call.quote(&self.seen);
        }
        asked
    }

    /// Says `last` and takes leave in good order: databases log a connection that is reset. It does as
    /// much as can be done at once, and waits for nothing.
    ///
    /// The price is one of this host's ports for a minute (`TIME_WAIT`).
    pub(super) async fn end(mut self, last: &[u8]) {
        let lingers = SockRef::from(self.stream.tcp()).set_linger(None);
        let mut wire = Pin::new(self.stream.wire());
        if lingers.is_err() {
            return;
        }
        poll_fn(|context| {
            let mut leave = || {
                if !last.is_empty() {
                    ready!(wire.as_mut().poll_write(context, last))?;
                }
                ready!(wire.as_mut().poll_flush(context))?;
                wire.as_mut().poll_shutdown(context)
            };
            // However far it came: the verdict stands.
            let _so_far: Poll<io::Result<()>> = leave();
            Poll::Ready(())
        })
        .await;
    }
}

async fn send(wire: &mut dyn Wire, message: &[u8]) -> io::Result<()> {
    if message.is_empty() {
        return Ok(());
    }
    wire.write_all(message).await?;
    wire.flush().await
}
