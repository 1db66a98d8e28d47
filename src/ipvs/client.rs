//! The socket: questions one at a time, changes in batches, each with a deadline, a sequence number of
//! its own, and room for the whole answer.

use std::{
    collections::BTreeMap,
    fmt::{self, Debug},
    io, mem,
    sync::Arc,
    time::Duration,
};

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, ParseableParametrized,
};
use netlink_packet_generic::{
    GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, setsockopt, sockopt},
};
use tokio::time::{self, Instant};

use super::{
    Error, Request,
    codec::{
        Command, Exchange, FAMILY_NAME, Outcome, Version, attributes,
        read::{self, Reader},
        write::{self, Ask, Envelope},
    },
};
use crate::model::{
    DestKey, DestState, KernelTable, LONGEST_NAME, ServiceAttrs, ServiceKey, ServiceState, Step,
    SyncDaemon, SyncRole, Timeouts,
};

/// How long an answer is waited for: loading a scheduler's module may take a second or two.
const LIMIT: Duration = Duration::from_secs(5);
/// Room for one datagram. A dump comes in datagrams as long as the longest receive call yet had room
/// for, and the kernel takes memory for all of it each time, which many kernels fill with zeros
/// (`init_on_alloc`): with its bookkeeping this is just below 16 KiB, enough for 40 destinations. An
/// acknowledgement is smaller than its request.
const DATAGRAM: usize = 15 * 1024;
/// Asked of the kernel: with CAP_NET_ADMIN it gives it, else no more than net.core.rmem_max.
const RECEIVE_BUFFER: usize = 1024 * 1024;
/// Changes in one call. Measured with 500 services of 20 destinations: half the time of one a call,
/// and no more is gained by a longer one.
const WINDOW: usize = 64;
/// What an acknowledgement takes of the receive buffer, at most: `skb->truesize` of the smallest
/// message is 768 on a 64-bit machine.
const ACKNOWLEDGEMENT: usize = 1024;
/// How often a dump during which the table changed is made.
const DUMPS: u32 = 5;
/// Datagrams thrown away after a request that was given up: a dump of a million destinations.
const LEFTOVERS: u32 = 24 * 1024;
/// After so many datagrams of one answer it is looked at the clock.
const CLOCK: u32 = 32;
/// How long it is waited before it is looked again whether something came.
const NAP: Duration = Duration::from_millis(5);
/// No limit is longer, so that it can be added to any time.
const LONGEST_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Told the operation ([`Request::operation`]) and the result (`ok` or [`Error::kind`]) of each
/// request, for metrics.
pub type Observer = Arc<dyn Fn(&'static str, &'static str) + Send + Sync>;

/// IPVS of the network namespace in which it was connected.
///
/// A request that is dropped before its end counts as one that timed out: whether it took effect is
/// not known, its late answer is thrown away.
pub struct Ipvs {
    socket: Socket,
    port: u32,
    family: u16,
    sequence: u32,
    /// What goes out.
    requests: Vec<u8>,
    /// What comes in.
    datagram: Vec<u8>,
    limit: Duration,
    /// Changes sent in one call: as many as have room for their acknowledgements.
    window: usize,
    /// A request was given up: its answer, or the rest of a dump, may still be in the socket.
    leftovers: bool,
    /// In how many datagrams the last answer came.
    datagrams: u32,
    /// Whether the counters of destinations are read.
    counters: bool,
    reader: Reader,
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
        let mut socket = Socket::new(NETLINK_GENERIC).map_err(io)?;
        socket.set_non_blocking(true).map_err(io)?;
        let port = socket.bind_auto().map_err(io)?.port_number();
        // From now on only the kernel's datagrams come in, and a call need not say to whom it goes.
        socket.connect(&SocketAddr::new(0, 0)).map_err(io)?;
        let room = make_room(&socket).map_err(io)?;
        // An acknowledgement need not repeat its request.
        socket.set_cap_ack(true).map_err(io)?;
        Ok(Self {
            socket,
            port,
            family: 0,
            sequence: 0,
            requests: Vec::new(),
            datagram: Vec::with_capacity(DATAGRAM),
            limit: LIMIT,
            // Half of it, as the kernel counts: the other half is for what comes late.
            window: (room / 2 / ACKNOWLEDGEMENT).clamp(1, WINDOW),
            leftovers: false,
            datagrams: 0,
            counters: true,
            reader: Reader::default(),
            observer: None,
        })
    }

    /// The same, with another limit on the time for each answer (5 s at first).
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit.min(LONGEST_LIMIT);
        self
    }

    /// The same, with another receive buffer (1 MiB at first, where the kernel gives that), of at
    /// least the kernel's minimum. How many changes go out at once is not made to fit: it adapts.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn with_receive_buffer(self, bytes: usize) -> io::Result<Self> {
        setsockopt(&self.socket, sockopt::RcvBuf, &bytes)?;
        Ok(self)
    }

    /// The same, the counters of destinations left out: to read them is a third of the work of a
    /// pass, which has no use for them.
    #[must_use]
    pub const fn without_counters(mut self) -> Self {
        self.counters = false;
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
                Ask::Bare(Command::GetInfo),
                Awaited::Ack,
                |_, found, bytes| {
                    *found = Some(read::info(bytes)?);
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
        self.ask(
            Request::ListServices,
            Ask::Bare(Command::GetService),
            Awaited::Dump,
            |reader, found: &mut KernelTable, bytes| {
                found.extend(reader.service(bytes)?);
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
        let found: Result<Option<_>, _> = self
            .ask(
                request,
                Ask::Service(Command::GetService, &key),
                Awaited::Ack,
                |reader, found, bytes| {
                    *found = reader.service(bytes)?;
                    Ok(())
                },
            )
            .await;
        match found {
            Ok(Some((found, state))) if found == key => Ok(Some(state)),
            Ok(_) => Err(missing(request)),
            Err(Error::NoSuchService { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The destinations of a service: none, and no error, if the service is not there. One of a
    /// forwarding method or tunnel type that the vocabulary does not have is left out.
    ///
    /// A dump of several datagrams goes on by position (`ip_vs_genl_dump_dests`): where one comes or
    /// goes meanwhile, it may leave another one out, and does not say so. Such a dump is made twice;
    /// what either has is there.
    ///
    /// # Errors
    /// Those of every request, and [`Error::Interrupted`].
    pub async fn dests(&mut self, key: ServiceKey) -> Result<BTreeMap<DestKey, DestState>, Error> {
        let mut dests = self.dump_dests(key).await?;
        if self.is_long() {
            dests.append(&mut self.dump_dests(key).await?);
        }
        Ok(dests)
    }

    async fn dump_dests(&mut self, key: ServiceKey) -> Result<BTreeMap<DestKey, DestState>, Error> {
        let counters = self.counters;
        let found = self.ask(
            Request::ListDests(key),
            Ask::Service(Command::GetDest, &key),
            Awaited::Dump,
            |reader, found: &mut Vec<_>, bytes| {
                found.extend(reader.dest(bytes, key.family(), counters)?);
                Ok(())
            },
        );
        let mut found = found.await?;
        // The kernel names the one that was added last first: turned round they are mostly in order,
        // and quick to sort. A long dump may name one twice: then the later reading counts.
        if !self.is_long() {
            found.reverse();
        }
        // All at once: quicker than one by one.
        Ok(found.into_iter().collect())
    }

    /// Whether the last answer was a dump that took several datagrams. The last one holds only the
    /// end.
    const fn is_long(&self) -> bool {
        self.datagrams > 2
    }

    /// All services with their destinations; one that vanishes meanwhile is absent.
    ///
    /// A dump of several datagrams goes on by a position that counts the services of all network
    /// namespaces (`ip_vs_genl_dump_services`): where one comes or goes meanwhile, anywhere, it may
    /// leave another one out, and does not say so. Such a dump is made twice; what either has is there.
    ///
    /// # Errors
    /// Those of every request, and [`Error::Interrupted`].
    pub async fn table(&mut self) -> Result<KernelTable, Error> {
        let mut table = KernelTable::new();
        let mut services = self.services().await?;
        if self.is_long() {
            services.append(&mut self.services().await?);
        }
        for (key, state) in services {
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
    ///
    /// Many go out in one call, and each acknowledgement is matched to its change by number. Where
    /// the kernel had no room for some ([`Error::Overrun`]), their fate is not known: read again.
    /// From then on fewer go out at once. After a call in which one timed out the rest is not sent:
    /// each of them counts as timed out at once.
    pub async fn apply(&mut self, steps: &[Step]) -> Vec<Result<(), Error>> {
        let mut results = Vec::with_capacity(steps.len());
        let mut rest = steps;
        while !rest.is_empty() {
            let (now, later) = rest.split_at_checked(self.window).unwrap_or((rest, &[]));
            let before = results.len();
            self.batch(now, &mut results).await;
            let limit = self.limit;
            let timed_out = |r: &Result<(), Error>| matches!(r, Err(Error::TimedOut { .. }));
            if results.iter().skip(before).any(timed_out) {
                let unsent = later.iter().map(Request::of);
                results.extend(unsent.map(|request| Err(Error::TimedOut { request, limit })));
                break;
            }
            rest = later;
        }
        results
    }

    /// Sets all counters to zero: of one service and its destinations, or of all and in total.
    ///
    /// # Errors
    /// [`Error::NoSuchService`], and those of every request.
    pub async fn zero(&mut self, key: Option<ServiceKey>) -> Result<(), Error> {
        let ask = match &key {
            Some(key) => Ask::Service(Command::Zero, key),
            None => Ask::Bare(Command::Zero),
        };
        self.tell(Request::Zero(key), ask).await
    }

    /// How long connections without packets are kept.
    ///
    /// # Errors
    /// Those of every request.
    pub async fn timeouts(&mut self) -> Result<Timeouts, Error> {
        let request = Request::GetTimeouts;
        let found: Option<_> = self
            .ask(
                request,
                Ask::Bare(Command::GetConfig),
                Awaited::Ack,
                |_, found, bytes| {
                    *found = Some(read::timeouts(bytes)?);
                    Ok(())
                },
            )
            .await?;
        found.ok_or_else(|| missing(request))
    }

    /// Changes the timeouts that are not zero.
    ///
    /// # Errors
    /// Those of every request.
    pub async fn set_timeouts(&mut self, to: &Timeouts) -> Result<(), Error> {
        self.tell(Request::SetTimeouts, Ask::SetTimeouts(to)).await
    }

    /// The sync daemons that run.
    ///
    /// # Errors
    /// Those of every request.
    pub async fn daemons(&mut self) -> Result<Vec<SyncDaemon>, Error> {
        self.ask(
            Request::ListDaemons,
            Ask::Bare(Command::GetDaemon),
            Awaited::Dump,
            |_, found: &mut Vec<_>, bytes| {
                found.push(read::daemon(bytes)?);
                Ok(())
            },
        )
        .await
    }

    /// Starts a sync daemon.
    ///
    /// # Errors
    /// [`Error::AlreadyThere`] for a second one of its role, and those of every request.
    pub async fn start_daemon(&mut self, daemon: &SyncDaemon) -> Result<(), Error> {
        let request = Request::StartDaemon(daemon.role);
        // No interface has a longer name, and an attribute has not room for any length.
        if !fits(&daemon.interface) {
            let source = Errno::ENODEV.into();
            return Err(Error::Refused { request, source });
        }
        self.tell(request, Ask::StartDaemon(daemon)).await
    }

    /// Stops the sync daemon of a role.
    ///
    /// One that was started a moment ago may be stopped before its thread has run. The kernel says
    /// nothing then: what `kthread_stop` returns is `EINTR`, which `netlink_rcv_skb` does not
    /// acknowledge. So after the limit it is looked whether it is gone.
    ///
    /// # Errors
    /// [`Error::NoSuchDaemon`], and those of every request.
    pub async fn stop_daemon(&mut self, role: SyncRole) -> Result<(), Error> {
        let told = self.tell(Request::StopDaemon(role), Ask::StopDaemon(role));
        match told.await {
            Err(Error::TimedOut { .. })
                if !self.daemons().await?.iter().any(|d| d.role == role) =>
            {
                Ok(())
            }
            told => told,
        }
    }

    /// Removes all services, whoever made them.
    ///
    /// # Errors
    /// Those of every request.
    pub async fn flush(&mut self) -> Result<(), Error> {
        self.tell(Request::Flush, Ask::Bare(Command::Flush)).await
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

    /// Sends as many changes as have room for their acknowledgements, and takes these.
    async fn batch(&mut self, steps: &[Step], results: &mut Vec<Result<(), Error>>) {
        let sent = steps.iter().filter(|step| unknown_module(step).is_none());
        let asks: Vec<_> = sent.map(Ask::Step).collect();
        let (mut outcomes, mut rest) = self.send(&asks).await;
        let enoent = |o: &Option<Outcome>| o.is_some_and(|o| o.errno() == Some(Errno::ENOENT));
        if !outcomes.is_empty() && outcomes.iter().all(enoent) {
            match self.family_moved().await {
                Ok(true) => (outcomes, rest) = self.send(&asks).await,
                Ok(false) => {}
                Err(_) => (outcomes, rest) = (vec![None; asks.len()], Failure::NoFamily),
            }
        }
        let overrun = |o: &Option<Outcome>| match o {
            Some(outcome) => *outcome == Outcome::Overrun,
            None => matches!(rest, Failure::Overrun),
        };
        if outcomes.iter().any(overrun) {
            self.window = (self.window / 2).max(1);
        }
        let mut outcomes = outcomes.into_iter();
        for step in steps {
            let result = match unknown_module(step) {
                Some(attrs) => Err(scheduler_missing(Request::of(step), attrs)),
                None => {
                    let outcome = outcomes.next().flatten();
                    let result = outcome.map_or_else(|| Err(rest.again()), Outcome::result);
                    result.map_err(|e| e.of(Request::of(step), asked(step), self.limit))
                }
            };
            self.observe(|| Request::of(step), &result);
            results.push(result);
        }
    }

    /// Sends requests in one call; how each went, and why those without an outcome have none.
    async fn send(&mut self, asks: &[Ask<'_>]) -> (Vec<Option<Outcome>>, Failure) {
        if asks.is_empty() {
            return (Vec::new(), Failure::TimedOut);
        }
        let first = self.encode(asks, Awaited::Ack);
        let mut exchange = Exchange::new(first, asks.len(), self.port);
        let ended = self.converse(&mut exchange, |_payload| Ok(())).await;
        let rest = ended.err().unwrap_or(Failure::TimedOut);
        (exchange.into_outcomes(), rest)
    }

    async fn tell(&mut self, request: Request, ask: Ask<'_>) -> Result<(), Error> {
        self.ask(request, ask, Awaited::Ack, |_, (), _bytes| Ok(()))
            .await
    }

    /// One request and its answer, from whose attributes `read` gathers what was asked for.
    async fn ask<T: Default + Send>(
        &mut self,
        request: Request,
        ask: Ask<'_>,
        awaited: Awaited,
        read: impl Fn(&mut Reader, &mut T, &[u8]) -> Result<(), DecodeError> + Send + Sync,
    ) -> Result<T, Error> {
        let mut interruptions = 0;
        let mut looked_up = false;
        let mut reader = mem::take(&mut self.reader);
        let result = loop {
            let first = self.encode(&[ask], awaited);
            let mut found = T::default();
            let take = |payload: &[u8]| read(&mut reader, &mut found, attributes(payload)?);
            let Err(failure) = self.one(first, take).await else {
                break Ok(found);
            };
            if matches!(failure, Failure::Interrupted) && interruptions + 1 < DUMPS {
                interruptions += 1;
                continue;
            }
            if !looked_up && failure.errno() == Some(Errno::ENOENT) {
                looked_up = true;
                match self.family_moved().await {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(error) => break Err(error),
                }
            }
            break Err(failure.of(request, None, self.limit));
        };
        self.reader = reader;
        self.observe(|| request, &result);
        result
    }

    /// Looks the family up again; whether it has another number now. For ENOENT is also what generic
    /// netlink says of a family that is gone: the module was unloaded, and perhaps loaded again.
    /// Nothing was done then.
    async fn family_moved(&mut self) -> Result<bool, Error> {
        let family = self.look_up().await?;
        let moved = family != self.family;
        self.family = family;
        Ok(moved)
    }

    async fn look_up(&mut self) -> Result<u16, Error> {
        let question = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY_NAME.to_owned())],
        });
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.sequence_number = self.sequence;
        header.flags = NLM_F_REQUEST | NLM_F_ACK;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
        message.finalize();
        self.requests.clear();
        self.requests.resize(message.buffer_len(), 0);
        message.serialize(&mut self.requests);

        let mut family = None;
        let take = |payload: &[u8]| {
            let answer: GenlMessage<GenlCtrl> = GenlMessage::parse_with_param(payload, 0_u16)?;
            family = answer.payload.nlas.iter().find_map(|nla| match nla {
                GenlCtrlAttrs::FamilyId(id) => Some(*id),
                _ => None,
            });
            Ok(())
        };
        match self.one(self.sequence, take).await {
            Ok(()) => family.ok_or_else(|| missing(Request::Connect)),
            Err(failure) if failure.errno() == Some(Errno::ENOENT) => Err(Error::NoFamily),
            Err(failure) => Err(failure.of(Request::Connect, None, self.limit)),
        }
    }

    /// Makes requests out of questions; the number of the first.
    fn encode(&mut self, asks: &[Ask<'_>], awaited: Awaited) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.requests.clear();
        for ask in asks {
            self.sequence = self.sequence.wrapping_add(1);
            let envelope = Envelope {
                family: self.family,
                flags: NLM_F_REQUEST
                    | match awaited {
                        Awaited::Ack => NLM_F_ACK,
                        Awaited::Dump => NLM_F_DUMP,
                    },
                sequence: self.sequence,
            };
            write::request(&mut self.requests, envelope, *ask);
        }
        first
    }

    /// Sends the one request that was made, hands the payloads of its answer to `take`.
    async fn one(
        &mut self,
        sequence: u32,
        take: impl FnMut(&[u8]) -> Result<(), DecodeError> + Send,
    ) -> Result<(), Failure> {
        let mut exchange = Exchange::new(sequence, 1, self.port);
        self.converse(&mut exchange, take).await?;
        let outcome = exchange.into_outcomes().into_iter().flatten().next();
        outcome.map_or(Err(Failure::TimedOut), Outcome::result)
    }

    /// Sends the requests that were made, and receives until the answer to each is complete.
    ///
    /// The kernel answers within the call that asks, however long that takes (a module to load, a
    /// thread to stop): what it has to say is there when the call returns. So the socket is tried
    /// first, and only where nothing is there, or very much, is it looked at the clock: to read a slow
    /// one twice a request, and a reactor that is woken by each datagram, cost more than the reading.
    async fn converse(
        &mut self,
        exchange: &mut Exchange,
        mut take: impl FnMut(&[u8]) -> Result<(), DecodeError> + Send,
    ) -> Result<(), Failure> {
        if self.leftovers {
            self.throw_leftovers_away()?;
        }
        // Until the answers are complete; stays so when this future is dropped.
        self.leftovers = true;
        // This one does not block: the kernel takes it or refuses it.
        self.socket.send(&self.requests, 0).map_err(Failure::Io)?;
        // Once it had no room for an answer, no more is to come.
        let mut lost = false;
        let mut wait = Wait::of(self.limit);
        self.datagrams = 0;
        while !exchange.is_complete() {
            // A long dump lets others have their turn.
            tokio::task::consume_budget().await;
            self.datagram.clear();
            // Says how long the datagram was, not how much of it there was room for.
            let flags = MsgFlags::MSG_TRUNC.bits();
            match self.socket.recv(&mut self.datagram, flags) {
                Ok(length) if length > self.datagram.len() => {
                    return Err(Failure::Malformed("a datagram that is cut short".into()));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !lost => {
                    wait.check()?;
                    time::sleep(NAP.min(self.limit)).await;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Failure::Overrun);
                }
                Err(error) if is_overrun(&error) => {
                    lost = true;
                    continue;
                }
                Err(error) => return Err(Failure::Io(error)),
            }
            exchange
                .datagram(&self.datagram, &mut take)
                .map_err(Failure::Malformed)?;
            self.datagrams = self.datagrams.saturating_add(1);
            if self.datagrams.is_multiple_of(CLOCK) {
                wait.check()?;
            }
        }
        self.leftovers = false;
        Ok(())
    }

    /// Reading is what makes the kernel go on with a dump, and as long as one goes on the socket
    /// takes no other.
    fn throw_leftovers_away(&mut self) -> Result<(), Failure> {
        for _ in 0..LEFTOVERS {
            self.datagram.clear();
            match self.socket.recv(&mut self.datagram, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.leftovers = false;
                    break;
                }
                Err(error) if is_overrun(&error) => {}
                Err(error) => return Err(Failure::Io(error)),
            }
        }
        Ok(())
    }

    fn observe<T>(&self, request: impl FnOnce() -> Request, result: &Result<T, Error>) {
        if let Some(observer) = &self.observer {
            let result = result.as_ref().map_or_else(Error::kind, |_found| "ok");
            observer(request().operation(), result);
        }
    }
}

/// Asks for a large receive buffer; how much room there is.
fn make_room(socket: &Socket) -> io::Result<usize> {
    // Beyond net.core.rmem_max only with CAP_NET_ADMIN in the machine's own user namespace.
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    socket.get_rx_buf_sz()
}

/// How long an answer is waited for, from when it is first looked at.
struct Wait {
    limit: Duration,
    until: Option<Instant>,
}

impl Wait {
    const fn of(limit: Duration) -> Self {
        let until = None;
        Self { limit, until }
    }

    fn check(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        match *self.until.get_or_insert(now + self.limit) {
            until if now < until => Ok(()),
            _ => Err(Failure::TimedOut),
        }
    }
}

/// Whether there was no room for an answer.
fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error().map(Errno::from_raw) == Some(Errno::ENOBUFS)
}

/// Whether a name can be that of a module or an interface.
fn fits(name: &str) -> bool {
    name.len() <= LONGEST_NAME && !name.contains('\0')
}

/// The attributes with a name that no module can have, and for which an attribute may have no room:
/// they are not sent.
fn unknown_module(step: &Step) -> Option<&ServiceAttrs> {
    asked(step).filter(|attrs| {
        let engine = attrs.persistence.as_ref().and_then(|p| p.engine.as_deref());
        !(fits(&attrs.scheduler.0) && engine.is_none_or(fits))
    })
}

/// The attributes of a service that a change asks for: they name modules.
const fn asked(step: &Step) -> Option<&ServiceAttrs> {
    match step {
        Step::NewService(_, attrs) | Step::SetService(_, attrs) => Some(attrs),
        Step::DelService(_) | Step::NewDest(..) | Step::SetDest(..) | Step::DelDest(..) => None,
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
    NoFamily,
    Interrupted,
    Overrun,
    Refused(io::Error),
    Malformed(DecodeError),
    Io(io::Error),
}

impl Outcome {
    fn errno(self) -> Option<Errno> {
        match self {
            Self::Refused(code) => Some(Errno::from_raw(code)),
            _ => None,
        }
    }

    fn result(self) -> Result<(), Failure> {
        match self {
            Self::Complete => Ok(()),
            Self::Interrupted => Err(Failure::Interrupted),
            Self::Refused(code) => Err(Failure::Refused(io::Error::from_raw_os_error(code))),
            Self::Overrun => Err(Failure::Overrun),
        }
    }
}

impl Failure {
    fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(error) => error.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }

    /// The same for each of several requests that met it together.
    fn again(&self) -> Self {
        match self {
            Self::Overrun => Self::Overrun,
            Self::Io(error) => Self::Io(match error.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => error.kind().into(),
            }),
            Self::Malformed(error) => Self::Malformed(error.to_string().into()),
            Self::NoFamily => Self::NoFamily,
            Self::TimedOut | Self::Interrupted | Self::Refused(_) => Self::TimedOut,
        }
    }

    /// `attrs` are those that the request asked for: they name modules.
    fn of(self, request: Request, attrs: Option<&ServiceAttrs>, limit: Duration) -> Error {
        let errno = self.errno();
        match self {
            Self::TimedOut => Error::TimedOut { request, limit },
            Self::NoFamily => Error::NoFamily,
            Self::Interrupted => Error::Interrupted {
                request,
                attempts: DUMPS,
            },
            Self::Overrun => Error::Overrun { request },
            Self::Malformed(source) => Error::Malformed { request, source },
            Self::Io(source) => Error::Io { request, source },
            Self::Refused(source) => match (errno, request, attrs) {
                (Some(Errno::EPERM), ..) => Error::NotPermitted { request },
                (Some(Errno::ESRCH), Request::StopDaemon(_), _) => Error::NoSuchDaemon { request },
                (Some(Errno::ESRCH), ..) => Error::NoSuchService { request },
                (Some(Errno::EEXIST), ..) => Error::AlreadyThere { request },
                (Some(Errno::ENOENT), _, Some(attrs)) => scheduler_missing(request, attrs),
                (Some(Errno::ENOENT), Request::SetDest(..) | Request::DelDest(..), None) => {
                    Error::NoSuchDest { request }
                }
                _ => Error::Refused { request, source },
            },
        }
    }
}

fn scheduler_missing(request: Request, attrs: &ServiceAttrs) -> Error {
    Error::SchedulerMissing {
        request,
        scheduler: attrs.scheduler.clone(),
        engine: attrs.persistence.as_ref().and_then(|p| p.engine.clone()),
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
        let port = mem::replace(&mut ipvs.port, 1);
        let asked = time::timeout(Duration::from_secs(20), ipvs.look_up());
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

    #[tokio::test]
    async fn after_a_change_that_timed_out_no_other_is_waited_for() {
        let mut ipvs = Ipvs::open().unwrap().with_limit(Duration::from_millis(50));
        (ipvs.port, ipvs.window) = (1, 2);
        let key: ServiceKey = "tcp/192.0.2.1:80".parse().unwrap();
        let before = ipvs.sequence;
        let results = ipvs.apply(&vec![Step::DelService(key); 9]).await;
        let timed_out = |r: &Result<(), Error>| matches!(r, Err(Error::TimedOut { .. }));
        assert!(
            results.len() == 9 && results.iter().all(timed_out),
            "{results:?}"
        );
        assert_eq!(ipvs.sequence - before, 2, "two were sent");
    }
}
