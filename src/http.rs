//! Where HTTP requests come in, for both roles: Unix sockets and TCP ports, each connection a task of
//! its own under limits, so that a mute client holds up nobody.

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
use nix::unistd::Uid;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, info, warn};

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
}

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid, .. } => write!(f, "uid {uid}"),
            Self::Loopback(peer) => write!(f, "{peer}"),
        }
    }
}

/// Listening sockets.
#[derive(Debug, Default)]
pub struct Doors {
    unix: Option<UnixListener>,
    tcp: Option<TcpListener>,
}

impl Doors {
    /// Opens the Unix socket at `unix` for its owner and group, and the loopback port `tcp`.
    ///
    /// # Errors
    /// [`DoorError`]; a socket that somebody listens on is left alone.
    pub async fn open(unix: Option<&Path>, tcp: Option<SocketAddr>) -> Result<Self, DoorError> {
        let mut doors = Self::default();
        if let Some(path) = unix {
            doors.unix = Some(unix_door(path).await?);
            info!(path = %path.display(), "listening");
        }
        if let Some(address) = tcp {
            if !address.ip().is_loopback() {
                return Err(DoorError::NotLoopback { address });
            }
            let listener = TcpListener::bind(address)
                .await
                .map_err(|source| DoorError::Tcp { address, source })?;
            info!(%address, "listening");
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
        }
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
    let own = Uid::effective().as_raw();
    let others = limits.connections.saturating_sub(limits.reserved);
    let others = Arc::new(Semaphore::new(others));
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            // Cancel-safe: `accept` takes a connection only when it returns it.
            accepted = accept_unix(doors.unix.as_ref()), if tasks.len() < limits.connections => {
                match accepted.and_then(|s| Ok((s.peer_cred()?, s))) {
                    Ok((peer, stream)) => {
                        let (uid, gid) = (peer.uid(), peer.gid());
                        let caller = Caller::Local { uid, gid };
                        let permit = match uid == 0 || uid == own {
                            true => None,
                            false => match Arc::clone(&others).try_acquire_owned() {
                                Ok(permit) => Some(permit),
                                Err(_) => {
                                    debug!(%caller, "connection closed: others hold as many as they may");
                                    continue;
                                }
                            },
                        };
                        let talk = connection(stream, caller, router.clone(), limits, stop.clone());
                        tasks.spawn(async move {
                            talk.await;
                            drop(permit);
                        });
                    }
                    Err(e) => refused(&e, &stop).await,
                }
            }
            // Cancel-safe: as above.
            accepted = accept_tcp(doors.tcp.as_ref()), if tasks.len() < limits.connections => {
                match accepted {
                    Ok((stream, peer)) => {
                        let caller = Caller::Loopback(peer);
                        tasks.spawn(connection(stream, caller, router.clone(), limits, stop.clone()));
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

async fn connection<S>(
    stream: S,
    caller: Caller,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    debug!(%caller, "connection accepted");
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(caller);
        let router = router.clone();
        async move {
            let request: Request = request.map(axum::body::Body::new);
            let response: Result<_, Infallible> = router.oneshot(request).await;
            response
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .keep_alive(limits.keep_alive);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
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
