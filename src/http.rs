//! Where HTTP requests come in, for both roles: Unix sockets and TCP ports, the latter with mutual TLS or not, each
//! connection a task of its own under limits, so that a client that is mute, slow or many holds up nobody.

mod guests;
mod patient;
mod seldom;

use std::{
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{Router, extract::Request};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use self::{
    guests::{Guests, Seat, Who},
    patient::Patient,
    seldom::Seldom,
};
use crate::{
    model::{CertificateNames, Grant},
    telemetry::Chain,
    tls,
};

/// What a client may take up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// A client that says nothing for so long is cut off.
    pub header: Duration,
    /// A connection lasts at most this long.
    pub lasting: Duration,
    /// Whether a connection serves more than one request.
    pub keep_alive: bool,
    /// So many of the connections are for root and this process's own user: others cannot take up all.
    pub reserved: usize,
    /// So many connections at once have a user of this host, and those with one certificate. Root and this process's own
    /// user may have any number.
    pub each: usize,
    /// And so many an address at a port without TLS.
    pub unknown: usize,
}

/// TLS has begun within this, or never.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// So much of an answer is written ahead of a client that takes it, and no head of a request is longer.
const WRITTEN: usize = 64 * 1024;

/// A client that takes nothing of its answer for so long is cut off.
const TAKEN: Duration = Duration::from_secs(20);

/// Answers under way at the end have this long.
const GRACE: Duration = Duration::from_secs(5);

/// Why a door could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The socket's path is taken.
    #[error("{} is in use: is this service running already?", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// The socket's path is no socket.
    #[error("{} is in the way and no socket: move it away", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("the socket {} cannot be opened", path.display())]
    Unix {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another host could connect, and nothing would ask who it is.
    #[error("{address} is not a loopback address: without mutual TLS only this host may ask")]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The port cannot be opened.
    #[error("{address} cannot be listened on")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A process of this host, at the socket.
    Local {
        /// Its user.
        uid: u32,
        /// Its first group.
        gid: u32,
    },
    /// A process of this host, at the port.
    Loopback(SocketAddr),
    /// Somebody with a certificate that was verified.
    Certified {
        /// What it names.
        names: CertificateNames,
        /// Where it asks from.
        peer: SocketAddr,
    },
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid, .. } => write!(f, "uid {uid}"),
            Self::Loopback(peer) => write!(f, "{peer}"),
            Self::Certified { names, peer } => write!(f, "{names} at {peer}"),
        }
    }
}

/// Listening sockets.
#[derive(Debug, Default)]
pub struct Doors {
    unix: Option<UnixListener>,
    tcp: Option<TcpListener>,
    tls: Option<Identity>,
    listed: Option<Listed>,
}

/// The directors whose certificates are taken for more than to be told that they are none.
pub type Listed = watch::Receiver<Arc<Vec<Grant>>>;

/// What is spoken TLS with now.
pub type Identity = watch::Receiver<Arc<tls::Server>>;

impl Doors {
    /// Opens the Unix socket at `unix` for its owner and group, and the loopback port `tcp`.
    ///
    /// # Errors
    /// [`DoorError`]; a socket that somebody listens on is left alone.
    pub async fn open(unix: Option<&Path>, tcp: Option<SocketAddr>) -> Result<Self, DoorError> {
        Self::open_with(unix, tcp, None).await
    }

    /// The same; with `tls` the port is one of whatever interface.
    ///
    /// # Errors
    /// [`DoorError`]; a socket that somebody listens on is left alone.
    pub async fn open_with(
        unix: Option<&Path>,
        tcp: Option<SocketAddr>,
        tls: Option<Identity>,
    ) -> Result<Self, DoorError> {
        let mut doors = Self {
            tls,
            ..Self::default()
        };
        if let Some(path) = unix {
            doors.unix = Some(unix_door(path).await?);
            info!(path = %path.display(), "listening");
        }
        if let Some(address) = tcp {
            if !address.ip().is_loopback() && doors.tls.is_none() {
                return Err(DoorError::NotLoopback { address });
            }
            let listener = TcpListener::bind(address)
                .await
                .map_err(|source| DoorError::Tcp { address, source })?;
            info!(%address, tls = doors.tls.is_some(), "listening");
            doors.tcp = Some(listener);
        }
        Ok(doors)
    }

    /// One port, bound already, on whatever interface.
    #[must_use]
    pub fn tcp(listener: TcpListener) -> Self {
        Self {
            unix: None,
            tcp: Some(listener),
            ..Self::default()
        }
    }

    /// The same, where a certificate of nobody in `listed` gets an answer, and no place beside those who are.
    #[must_use]
    pub fn for_listed(mut self, listed: Listed) -> Self {
        self.listed = Some(listed);
        self
    }

    /// Where the port is, where there is one.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|l| l.local_addr().ok())
    }
}

async fn unix_door(path: &Path) -> Result<UnixListener, DoorError> {
    let bad = |source| DoorError::Unix {
        path: path.to_owned(),
        source,
    };
    let listener = match UnixListener::bind(path) {
        Ok(listener) => listener,
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            let kind = std::fs::symlink_metadata(path).map_err(bad)?.file_type();
            if !kind.is_socket() {
                return Err(DoorError::NoSocket {
                    path: path.to_owned(),
                });
            }
            match UnixStream::connect(path).await {
                Ok(_) => {
                    return Err(DoorError::InUse {
                        path: path.to_owned(),
                    });
                }
                // Left behind by a run that was killed.
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(bad)?;
                    UnixListener::bind(path).map_err(bad)?
                }
                Err(e) => return Err(bad(e)),
            }
        }
        Err(e) => return Err(bad(e)),
    };
    // Whoever may connect may ask: the owner, root, and members of the socket's group.
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o660)).map_err(bad)?;
    Ok(listener)
}

/// Answers requests until `stop`; then lets answers under way go out.
pub async fn serve(doors: Doors, router: Router, limits: Limits, stop: CancellationToken) {
    let mut tasks: JoinSet<()> = JoinSet::new();
    let guests = Guests::new(limits);
    let host = Host {
        router,
        limits,
        stop: stop.clone(),
        guests: guests.clone(),
        tls: doors.tls.clone(),
        listed: doors.listed.clone(),
        handshakes: Seldom::default(),
    };
    let host = Arc::new(host);
    let port = match host.tls {
        Some(_) => Arc::clone(&guests.greeting),
        None => Arc::clone(&guests.tcp),
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            // Cancel-safe: `accept` takes a connection only when it returns it.
            accepted = accept_unix(doors.unix.as_ref()), if guests.unix.available_permits() > 0 => {
                match accepted.and_then(|s| Ok((s.peer_cred()?, s))) {
                    Ok((peer, stream)) => {
                        let caller = Caller::Local { uid: peer.uid(), gid: peer.gid() };
                        if let Some(seat) = guests.local(peer.uid()) {
                            let host = Arc::clone(&host);
                            let keep_alive = limits.keep_alive;
                            tasks.spawn(async move { host.connection(stream, caller, seat, keep_alive).await });
                        } else {
                            debug!(%caller, "connection closed: its user, or all others, hold as many as they may");
                        }
                    }
                    Err(e) => refused(&e, &stop).await,
                }
            }
            // Cancel-safe: as above.
            accepted = accept_tcp(doors.tcp.as_ref()), if port.available_permits() > 0 => {
                match accepted {
                    Ok((stream, peer)) => {
                        let seat = match host.tls {
                            Some(_) => guests.greeted(peer.ip()),
                            None => guests.distant(Who::Address(peer.ip())),
                        };
                        if let Some(seat) = seat {
                            let host = Arc::clone(&host);
                            tasks.spawn(async move { host.welcome(stream, peer, seat).await });
                        } else {
                            debug!(%peer, "connection closed: its address holds as many as it may");
                        }
                    }
                    Err(e) => refused(&e, &stop).await,
                }
            }
            // Cancel-safe: a task stays in the set until it is returned.
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                if let Err(e) = ended {
                    warn!(error = %e, "connection's task failed");
                }
            }
        }
    }
    let drained = timeout(GRACE, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        warn!(left = tasks.len(), "connections cut off at the end");
    }
    tasks.shutdown().await;
}

async fn accept_unix(listener: Option<&UnixListener>) -> io::Result<UnixStream> {
    match listener {
        Some(l) => l.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

async fn accept_tcp(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(l) => l.accept().await,
        None => std::future::pending().await,
    }
}

/// Out of file descriptors, most likely: trying again at once would only burn time.
async fn refused(e: &io::Error, stop: &CancellationToken) {
    warn!(error = %e, "connection could not be accepted");
    tokio::select! {
        () = stop.cancelled() => {}
        () = sleep(Duration::from_millis(200)) => {}
    }
}

/// What all connections share.
struct Host {
    router: Router,
    limits: Limits,
    stop: CancellationToken,
    guests: Guests,
    tls: Option<Identity>,
    listed: Option<Listed>,
    handshakes: Seldom,
}

impl Host {
    /// One TCP connection: TLS first, where that is spoken.
    async fn welcome(&self, stream: TcpStream, peer: SocketAddr, seat: Seat) {
        let Some(mut identity) = self.tls.clone() else {
            let caller = Caller::Loopback(peer);
            let keep_alive = self.limits.keep_alive;
            return self.connection(stream, caller, seat, keep_alive).await;
        };
        let config = identity.borrow_and_update().config();
        let shaking = timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream));
        let shaken = tokio::select! {
            () = self.stop.cancelled() => return,
            // Cancel-safe: only the end comes between.
            shaken = shaking => shaken.unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into())),
        };
        let stream = match shaken {
            Ok(stream) => stream,
            Err(e) => {
                if let Some(more) = self.handshakes.now() {
                    info!(%peer, error = tls::why(&e), more, "connection refused: TLS was not begun as this provisioner wants it");
                }
                return;
            }
        };
        let chain = stream.get_ref().1.peer_certificates();
        let chain: Vec<_> = chain.unwrap_or_default().to_vec();
        let names = tls::presented(Some(&chain));
        let listed = self.listed.as_ref();
        let listed = listed.is_none_or(|all| names.grants(&all.borrow()).next().is_some());
        // Its address is free again for others behind it: from here on its certificate counts. One of nobody is told so,
        // in the place that it has.
        let seat = match listed {
            true => self.guests.moved(seat, &names),
            false => Some(seat),
        };
        let Some(seat) = seat else {
            debug!(%names, %peer, "connection closed: its certificate, or all together, hold as many as they may");
            return;
        };
        let keep_alive = listed && self.limits.keep_alive;
        let caller = Caller::Certified { names, peer };
        tokio::select! {
            () = self.connection(stream, caller.clone(), seat, keep_alive) => {}
            // Cancel-safe: nothing is held.
            error = no_longer_taken(&mut identity, &chain) => {
                warn!(%caller, error = %Chain(&error), "connection cut off: its certificate is not taken any more");
            }
        }
    }

    async fn connection<S>(&self, stream: S, caller: Caller, _seat: Seat, keep_alive: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        debug!(%caller, "connection accepted");
        let (limits, stop) = (self.limits, &self.stop);
        let service = hyper::service::service_fn(|mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(caller.clone());
            let router = self.router.clone();
            async move {
                let request: Request = request.map(axum::body::Body::new);
                let response: Result<_, Infallible> = router.oneshot(request).await;
                response
            }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.header)
            .max_buf_size(WRITTEN)
            .keep_alive(keep_alive);
        let stream = TokioIo::new(Patient::new(stream, TAKEN));
        let mut connection = std::pin::pin!(http.serve_connection(stream, service));
        let ended = timeout(limits.lasting, async {
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        });
        match ended.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => debug!(%caller, error = %e, "connection ended early"),
            Err(_elapsed) => debug!(%caller, "connection took too long"),
        }
    }
}

/// Ends when a new identity does not take this certificate: it was revoked, or its authority is gone.
async fn no_longer_taken(identity: &mut Identity, chain: &[CertificateDer<'_>]) -> rustls::Error {
    while identity.changed().await.is_ok() {
        if let Err(e) = identity.borrow_and_update().takes(chain) {
            return e;
        }
    }
    std::future::pending().await
}
