//! One file a kind of probe.

mod agent;
mod dns;
mod external;
mod file;
mod grpc;
mod http;
mod icmp;
mod login;
mod mysql;
mod postgres;
mod redis;
mod smtp;
mod talk;
mod tcp;
#[cfg(test)]
mod testing;
mod tls;
mod udp;
mod words;

use super::{Unprepared, call::Call};
use crate::model::{CheckKind, FailReason};

/// A kind of probe.
pub(super) trait Kind: Sized {
    /// What the configuration says of it.
    type Options;

    /// Reads what the options name.
    fn prepare(options: &Self::Options) -> Result<Self, Unprepared>;

    /// Asks once. What is found beside the verdict is left in `call`.
    fn ask(&self, call: &mut Call<'_>) -> impl Future<Output = Result<(), FailReason>> + Send;
}

/// Any of them, ready.
#[derive(Debug)]
pub(super) enum Asker {
    Tcp(tcp::Tcp),
    Dns(dns::Dns),
    Udp(udp::Udp),
    Icmp(icmp::Icmp),
    Postgres(postgres::Postgres),
    Mysql(mysql::Mysql),
    Redis(redis::Redis),
    Agent(agent::Agent),
    File(file::File),
    External(external::External),
    Http(Box<http::Http>),
    Tls(tls::Tls),
    Smtp(smtp::Smtp),
    Grpc(grpc::Grpc),
}

impl Asker {
    pub(super) fn prepare(kind: &CheckKind) -> Result<Self, Unprepared> {
        Ok(match kind {
            CheckKind::Tcp(o) => Self::Tcp(Kind::prepare(o)?),
            CheckKind::Dns(o) => Self::Dns(Kind::prepare(o)?),
            CheckKind::Udp(o) => Self::Udp(Kind::prepare(o)?),
            CheckKind::Icmp(o) => Self::Icmp(Kind::prepare(o)?),
            CheckKind::Postgres(o) => Self::Postgres(Kind::prepare(o)?),
            CheckKind::Mysql(o) => Self::Mysql(Kind::prepare(o)?),
            CheckKind::Redis(o) => Self::Redis(Kind::prepare(o)?),
            CheckKind::Agent(o) => Self::Agent(Kind::prepare(o)?),
            CheckKind::FromFile(o) => Self::File(Kind::prepare(o)?),
            CheckKind::External(o) => Self::External(Kind::prepare(o)?),
            CheckKind::Http(o) => Self::Http(Box::new(http::Http::prepare(o)?)),
            CheckKind::Tls(o) => Self::Tls(Kind::prepare(o)?),
            CheckKind::Smtp(o) => Self::Smtp(Kind::prepare(o)?),
            CheckKind::Grpc(o) => Self::Grpc(Kind::prepare(o)?),
        })
    }

    /// The plain one runs where it is; the others have a place of their own on the heap, so that ten
    /// thousand plain ones stay small.
    pub(super) async fn ask(&self, call: &mut Call<'_>) -> Result<(), FailReason> {
        match self {
            Self::Tcp(kind) => kind.ask(call).await,
            Self::Dns(kind) => Box::pin(kind.ask(call)).await,
            Self::Udp(kind) => Box::pin(kind.ask(call)).await,
            Self::Icmp(kind) => Box::pin(kind.ask(call)).await,
            Self::Postgres(kind) => Box::pin(kind.ask(call)).await,
            Self::Mysql(kind) => Box::pin(kind.ask(call)).await,
            Self::Redis(kind) => Box::pin(kind.ask(call)).await,
            Self::Agent(kind) => Box::pin(kind.ask(call)).await,
            Self::File(kind) => Box::pin(kind.ask(call)).await,
            Self::External(kind) => Box::pin(kind.ask(call)).await,
            Self::Http(kind) => Box::pin(kind.ask(call)).await,
            Self::Tls(kind) => Box::pin(kind.ask(call)).await,
            Self::Smtp(kind) => Box::pin(kind.ask(call)).await,
            Self::Grpc(kind) => Box::pin(kind.ask(call)).await,
        }
    }
}
