//! The socket: one request at a time, each with a deadline, a sequence number of its own, and room
//! for the whole answer.

use std::{
    collections::BTreeMap,
    fmt::{self, Debug},
    io,
    sync::Arc,
    time::Duration,
};

use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, ParseableParametrized,
};
use netlink_packet_generic::{
    GenlFamily, GenlHeader, GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_GENERIC,
};
use nix::errno::Errno;

use super::{
    Error, Request,
    codec::{Command, Exchange, FAMILY_NAME, Message, Outcome, Version},
};
use crate::model::{
    DestKey, DestState, KernelTable, Scheduler, ServiceAttrs, ServiceKey, ServiceState, Step,
    SyncDaemon, SyncRole, Timeouts,
};

/// How long an answer is waited for: loading a scheduler's module may take a second or two.
const LIMIT: Duration = Duration::from_secs(5);
/// Room for one datagram. `netlink_dump` fills at most 32 KiB, and that only after it has seen a
/// receive call with as much room; an acknowledgement is smaller than its request.
const DATAGRAM: usize = 64 * 1024;
/// Asked of the kernel, which gives no more than net.core.rmem_max.
const RECEIVE_BUFFER: i32 = 1024 * 1024;
/// How often a dump during which the table changed is made.
const DUMPS: u32 = 5;
/// Datagrams thrown away after a request that was given up: a dump of a million destinations.
const LEFTOVERS: u32 = 16 * 1024;
/// Longest name of a scheduler or persistence engine (`IP_VS_SCHEDNAME_MAXLEN`,
/// `IP_VS_PENAME_MAXLEN`, less the zero at the end).
const LONGEST_NAME: usize = 15;

/// Told the operation ([`Request::operation`]) and the result (`ok` or [`Error::kind`]) of each
/// request, for metrics.
pub type Observer = Arc<dyn Fn(&'static str, &'static str) + Send + Sync>;

/// IPVS of the network namespace in which it was connected.
///
/// A request that is dropped before its end counts as one that timed out: whether it took effect is
/// not known, its late answer is thrown away.
pub struct Ipvs {
    socket: TokioSocket,
    port: u32,
    family: u16,
    sequence: u32,
    datagram: Vec<u8>,
    limit: Duration,
    /// A request was given up: its answer, or the rest of a dump, may still be in the socket.
    leftovers: bool,
    observer: Option<Observer>,
}

impl Debug for Ipvs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ipvs")
            .field("port", &self.port)
            .field("family", &self.family)
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Ipvs {
    /// Opens a socket in the caller's network namespace and looks the family up, which makes the
    /// kernel load `ip_vs` where it can.
    ///
    /// # Errors
    /// [`Error::NoFamily`] without IPVS, [`Error::Io`] where there is no netlink.
    pub async fn connect() -> Result<Self, Error> {
        let mut ipvs = Self::open()?;
        ipvs.family = ipvs.look_up().await?;
        Ok(ipvs)
    }

    /// A socket, the family not yet looked up.
    fn open() -> Result<Self, Error> {
        let io = |source| Error::Io {
            request: Request::Connect,
            source,
        };
        let mut socket = TokioSocket::new(NETLINK_GENERIC).map_err(io)?;
        let port = socket.socket_mut().bind_auto().map_err(io)?.port_number();
        socket
            .socket_ref()
            .set_rx_buf_sz(RECEIVE_BUFFER)
            .map_err(io)?;
        // An acknowledgement need not repeat its request.
        socket.socket_ref().set_cap_ack(true).map_err(io)?;
        Ok(Self {
            socket,
            port,
            family: 0,
            sequence: 0,
            datagram: Vec::with_capacity(DATAGRAM),
            limit: LIMIT,
            leftovers: false,
            observer: None,
        })
    }

    /// The same, with another limit on the time for each answer (5 s at first).
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The same, with each request told to `observer`.
    #[must_use]
    pub fn with_observer(mut self, observer: Observer) -> Self {
        self.observer = Some(observer);
        self
    }

    /// IPVS's version and the number of buckets of its connection table.
    ///
    /// # Errors
    /// Those of every request: not permitted, timed out, overrun, refused, malformed, I/O.
    pub async fn info(&mut self) -> Result<(Version, u32), Error> {
        let request = Request::Info;
        let found: Option<_> = self
            .ask(
                request,
                &Message::bare(Command::GetInfo),
                Awaited::Ack,
                |found, message| {
                    *found = Some(message.info()?);
                    Ok(())
                },
            )
            .await?;
        found.ok_or_else(|| missing(request))
    }

    /// All services, without their destinations. One of a protocol that the vocabulary does not
    /// have is left out.
    ///
    /// # Errors
    /// Those of every request, and [`Error::Interrupted`].
    pub async fn services(&mut self) -> Result<KernelTable, Error> {
        let message = Message::bare(Command::GetService);
        self.ask(
            Request::ListServices,
            &message,
            Awaited::Dump,
            |found: &mut KernelTable, message| {
                found.extend(message.service()?);
                Ok(())
            },
        )
        .await
    }

    /// A service without its destinations; `None` if it is not there.
    ///
    /// # Errors
    /// Those of every request.
    pub async fn service(&mut self, key: ServiceKey) -> Result<Option<ServiceState>, Error> {
        let request = Request::GetService(key);
        let message = Message::of_service(Command::GetService, &key);
        let found: Result<Option<_>, _> = self
            .ask(request, &message, Awaited::Ack, |found, message| {
                *found = message.service()?;
                Ok(())
            })
            .await;
        match found {
            Ok(Some((found, state))) if found == key => Ok(Some(state)),
            Ok(_) => Err(missing(request)),
            Err(Error::NoSuchService { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The destinations of a service: none, and no error, if the service is not there.
    ///
    /// # Errors
    /// Those of every request, and [`Error::Interrupted`].
    pub async fn dests(&mut self, key: ServiceKey) -> Result<BTreeMap<DestKey, DestState>, Error> {
        let message = Message::of_service(Command::GetDest, &key);
        let read = |found: &mut BTreeMap<_, _>, message: Message| {
            found.extend([message.dest(key.family())?]);
            Ok(())
        };
        self.ask(Request::ListDests(key), &message, Awaited::Dump, read)
            .await
    }

    /// All services with their destinations; one that vanishes meanwhile is absent.
    ///
    /// # Errors
    /// Those of every request, and [`Error::Interrupted`].
    pub async fn table(&mut self) -> Result<KernelTable, Error> {
        let mut table = KernelTable::new();
        for (key, state) in self.services().await? {
            table.extend(self.with_dests(key, state).await?);
        }
        Ok(table)
    }

    /// These services with their destinations; one that is not there is absent.
    ///
    /// # Errors
    /// Those of every request, and [`Error::Interrupted`].
    pub async fn read(&mut self, keys: &[ServiceKey]) -> Result<KernelTable, Error> {
        let mut table = KernelTable::new();
        for key in keys {
            if let Some(state) = self.service(*key).await? {
                table.extend(self.with_dests(*key, state).await?);
            }
        }
        Ok(table)
    }

    /// Makes these changes in their order, each whether those before it went well or not, and says of
    /// each how it went: as many results as steps.
    pub async fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), Error>> {
        let mut results = Vec::with_capacity(steps.len());
        for step in steps {
            results.push(self.one(step).await);
        }
        results
    }

    async fn one(&mut self, step: &Step) -> Result<(), Error> {
        let request = Request::of(step);
        match step {
            Step::NewService(key, to) => {
                self.write_service(request, Command::NewService, *key, to)
                    .await
            }
            Step::SetService(key, to) => {
                self.write_service(request, Command::SetService, *key, to)
                    .await
            }
            Step::DelService(key) => {
                self.tell(request, &Message::of_service(Command::DelService, key))
                    .await
            }
            Step::NewDest(key, dest, to) => {
                self.tell(
                    request,
                    &Message::with_dest(Command::NewDest, key, dest, to),
                )
                .await
            }
            Step::SetDest(key, dest, to) => {
                self.tell(
                    request,
                    &Message::with_dest(Command::SetDest, key, dest, to),
                )
                .await
            }
            Step::DelDest(key, dest) => {
                self.tell(request, &Message::of_dest(Command::DelDest, key, dest))
                    .await
            }
        }
    }

    /// Removes all services, whoever made them.
    ///
    /// # Errors
    /// Those of every request.
    pub async fn flush(&mut self) -> Result<(), Error> {
        self.tell(Request::Flush, &Message::bare(Command::Flush))
            .await
    }

    /// Sets all counters to zero: of one service and its destinations, or of all and in total.
    ///
    /// # Errors
    /// [`Error::NoSuchService`], and those of every request.
    pub async fn zero(&mut self, key: Option<ServiceKey>) -> Result<(), Error> {
        todo!("{key:?}")
    }

    /// How long connections without packets are kept.
    ///
    /// # Errors
    /// Those of every request.
    pub async fn timeouts(&mut self) -> Result<Timeouts, Error> {
        todo!()
    }

    /// Changes the timeouts that are not zero.
    ///
    /// # Errors
    /// Those of every request.
    pub async fn set_timeouts(&mut self, to: &Timeouts) -> Result<(), Error> {
        todo!("{to:?}")
    }

    /// The sync daemons that run.
    ///
    /// # Errors
    /// Those of every request.
    pub async fn daemons(&mut self) -> Result<Vec<SyncDaemon>, Error> {
        todo!()
    }

    /// Starts a sync daemon.
    ///
    /// # Errors
    /// [`Error::AlreadyThere`] for a second one of its role, and those of every request.
    pub async fn start_daemon(&mut self, daemon: &SyncDaemon) -> Result<(), Error> {
        todo!("{daemon:?}")
    }

    /// Stops the sync daemon of a role.
    ///
    /// # Errors
    /// [`Error::NoSuchDaemon`], and those of every request.
    pub async fn stop_daemon(&mut self, role: SyncRole) -> Result<(), Error> {
        todo!("{role:?}")
    }

    /// An empty list may be that of a service that has just gone: then the service is asked for.
    async fn with_dests(
        &mut self,
        key: ServiceKey,
        mut state: ServiceState,
    ) -> Result<Option<(ServiceKey, ServiceState)>, Error> {
        state.dests = self.dests(key).await?;
        if state.dests.is_empty() && self.service(key).await?.is_none() {
            return Ok(None);
        }
        Ok(Some((key, state)))
    }

    async fn write_service(
        &mut self,
        request: Request,
        command: Command,
        key: ServiceKey,
        attrs: &ServiceAttrs,
    ) -> Result<(), Error> {
        let message = Message::with_service(command, &key, attrs);
        // No module can have a longer name, and an attribute has not room for any length.
        let fits = |name: &str| name.len() <= LONGEST_NAME && !name.contains('\0');
        if let Some((scheduler, engine)) = message.modules()
            && !(fits(&scheduler.0) && engine.as_deref().is_none_or(fits))
        {
            let error = Error::SchedulerMissing {
                request,
                scheduler,
                engine,
            };
            self.observe(request, error.kind());
            return Err(error);
        }
        self.tell(request, &message).await
    }

    async fn tell(&mut self, request: Request, message: &Message) -> Result<(), Error> {
        self.ask(request, message, Awaited::Ack, |(), _message| Ok(()))
            .await
    }

    /// One request and its answer, from which `read` gathers what was asked for.
    async fn ask<T: Default + Send>(
        &mut self,
        request: Request,
        message: &Message,
        awaited: Awaited,
        read: impl Fn(&mut T, Message) -> Result<(), DecodeError> + Send + Sync,
    ) -> Result<T, Error> {
        let mut interruptions = 0;
        let mut looked_up = false;
        let result = loop {
            let mut found = T::default();
            let take = |message| read(&mut found, message);
            let Err(failure) = self.exchange(self.family, message, awaited, take).await else {
                break Ok(found);
            };
            if matches!(failure, Failure::Interrupted) && interruptions + 1 < DUMPS {
                interruptions += 1;
                continue;
            }
            // ENOENT is also what generic netlink says of a family that is gone: the module was
            // unloaded, and perhaps loaded again under another number.
            if !looked_up && failure.errno() == Some(Errno::ENOENT) {
                looked_up = true;
                match self.look_up().await {
                    Ok(family) if family != self.family => {
                        self.family = family;
                        continue;
                    }
                    Ok(_) => {}
                    Err(error) => break Err(error),
                }
            }
            break Err(failure.of(request, message.modules(), self.limit));
        };
        self.observe(
            request,
            result.as_ref().map_or_else(Error::kind, |_found| "ok"),
        );
        result
    }

    async fn look_up(&mut self) -> Result<u16, Error> {
        let question = GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY_NAME.to_owned())],
        };
        let mut family = None;
        let take = |answer: GenlCtrl| {
            family = answer.nlas.iter().find_map(|nla| match nla {
                GenlCtrlAttrs::FamilyId(id) => Some(*id),
                _ => None,
            });
            Ok(())
        };
        match self.exchange(0, &question, Awaited::Ack, take).await {
            Ok(()) => family.ok_or_else(|| missing(Request::Connect)),
            Err(failure) if failure.errno() == Some(Errno::ENOENT) => Err(Error::NoFamily),
            Err(failure) => Err(failure.of(Request::Connect, None, self.limit)),
        }
    }

    async fn exchange<F>(
        &mut self,
        family: u16,
        payload: &F,
        awaited: Awaited,
        mut take: impl FnMut(F) -> Result<(), DecodeError> + Send,
    ) -> Result<(), Failure>
    where
        F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + Clone + Debug + Sync,
    {
        if self.leftovers {
            self.throw_leftovers_away()?;
        }
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.sequence_number = self.sequence;
        header.flags = NLM_F_REQUEST
            | match awaited {
                Awaited::Ack => NLM_F_ACK,
                Awaited::Dump => NLM_F_DUMP,
            };
        let mut message = GenlMessage::from_payload(payload.clone());
        message.set_resolved_family_id(family);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);

        let mut exchange = Exchange::new(self.sequence, self.port);
        // Until the answer is complete; stays so when this future is dropped.
        self.leftovers = true;
        let (socket, datagram) = (&self.socket, &mut self.datagram);
        let conversation = async {
            socket
                .send_to(&bytes, &SocketAddr::new(0, 0))
                .await
                .map_err(Failure::Io)?;
            loop {
                datagram.clear();
                let sender = socket.recv_from(datagram).await.map_err(|error| {
                    match error.raw_os_error().map(Errno::from_raw) {
                        Some(Errno::ENOBUFS) => Failure::Overrun,
                        _ => Failure::Io(error),
                    }
                })?;
                // Only the kernel answers from port 0.
                if sender.port_number() != 0 {
                    continue;
                }
                if datagram.len() >= DATAGRAM {
                    return Err(Failure::Malformed("a datagram that is cut short".into()));
                }
                let take = |message: GenlMessage<F>| take(message.payload);
                match exchange
                    .datagram(datagram, take)
                    .map_err(Failure::Malformed)?
                {
                    Outcome::More => {}
                    Outcome::Complete => return Ok(Ok(())),
                    Outcome::Interrupted => return Ok(Err(Failure::Interrupted)),
                    Outcome::Refused(error) => return Ok(Err(Failure::Refused(error))),
                    Outcome::Overrun => return Err(Failure::Overrun),
                }
            }
        };
        // The outer error leaves something in the socket, the inner one does not.
        let result = match tokio::time::timeout(self.limit, conversation).await {
            Ok(result) => result?,
            Err(_elapsed) => return Err(Failure::TimedOut),
        };
        self.leftovers = false;
        result
    }

    /// Reading is what makes the kernel go on with a dump, and as long as one goes on the socket
    /// takes no other.
    fn throw_leftovers_away(&mut self) -> Result<(), Failure> {
        for _ in 0..LEFTOVERS {
            self.datagram.clear();
            match self.socket.socket_ref().recv(&mut self.datagram, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.leftovers = false;
                    break;
                }
                Err(error) if error.raw_os_error().map(Errno::from_raw) == Some(Errno::ENOBUFS) => {
                }
                Err(error) => return Err(Failure::Io(error)),
            }
        }
        Ok(())
    }

    fn observe(&self, request: Request, result: &'static str) {
        if let Some(observer) = &self.observer {
            observer(request.operation(), result);
        }
    }
}

/// An answer without what was asked for.
fn missing(request: Request) -> Error {
    Error::Malformed {
        request,
        source: "it lacks what was asked for".into(),
    }
}

/// What ends an answer.
#[derive(Clone, Copy, Debug)]
enum Awaited {
    /// The acknowledgement, after the message asked for if there is one.
    Ack,
    /// `NLMSG_DONE`.
    Dump,
}

/// Why an exchange failed, before it is said of what.
#[derive(Debug)]
enum Failure {
    TimedOut,
    Interrupted,
    Overrun,
    Refused(io::Error),
    Malformed(DecodeError),
    Io(io::Error),
}

impl Failure {
    fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(error) => error.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }

    fn of(
        self,
        request: Request,
        modules: Option<(Scheduler, Option<String>)>,
        limit: Duration,
    ) -> Error {
        let errno = self.errno();
        match self {
            Self::TimedOut => Error::TimedOut { request, limit },
            Self::Interrupted => Error::Interrupted {
                request,
                attempts: DUMPS,
            },
            Self::Overrun => Error::Overrun { request },
            Self::Malformed(source) => Error::Malformed { request, source },
            Self::Io(source) => Error::Io { request, source },
            Self::Refused(source) => match (errno, request, modules) {
                (Some(Errno::EPERM), ..) => Error::NotPermitted { request },
                (Some(Errno::ESRCH), ..) => Error::NoSuchService { request },
                (Some(Errno::EEXIST), ..) => Error::AlreadyThere { request },
                (Some(Errno::ENOENT), _, Some((scheduler, engine))) => Error::SchedulerMissing {
                    request,
                    scheduler,
                    engine,
                },
                (Some(Errno::ENOENT), Request::SetDest(..) | Request::DelDest(..), None) => {
                    Error::NoSuchDest { request }
                }
                _ => Error::Refused { request, source },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel answers this one too, but to another port than the client listens for: to the
    /// client it is mute.
    #[tokio::test]
    async fn an_answer_that_does_not_come_is_waited_for_no_longer_than_the_limit() {
        let limit = Duration::from_millis(50);
        let mut ipvs = Ipvs::open().unwrap().with_limit(limit);
        let port = std::mem::replace(&mut ipvs.port, 1);
        let asked = tokio::time::timeout(Duration::from_secs(20), ipvs.look_up());
        let error = asked.await.expect("an end within the limit").unwrap_err();
        assert!(
            matches!(error, Error::TimedOut { limit: l, .. } if l == limit),
            "{error}"
        );
        // What came too late is not taken for the answer to the next request.
        ipvs.port = port;
        ipvs.limit = Duration::from_secs(20);
        let again = ipvs.look_up().await;
        assert!(matches!(again, Ok(_) | Err(Error::NoFamily)), "{again:?}");
    }
}
