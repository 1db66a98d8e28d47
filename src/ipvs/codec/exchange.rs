//! PURE: which of the datagrams that arrive are the answer to a request, and when it is complete.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN, NetlinkBuffer,
    NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
};

/// How an answer ended.
#[derive(Debug)]
pub(in crate::ipvs) enum Outcome {
    /// It is not complete yet.
    More,
    /// It is complete.
    Complete,
    /// It is complete, but what it describes changed meanwhile (`NLM_F_DUMP_INTR`).
    Interrupted,
    /// The kernel refused, with this error number.
    Refused(io::Error),
    /// The kernel had no room for an answer (`NLMSG_OVERRUN`).
    Overrun,
}

/// The answer to one request as it comes in: it ends with an acknowledgement, an error, or the end of
/// the dump. A message with another sequence number or port, a late
/// answer to a request that timed out, is passed over.
#[derive(Debug)]
pub(in crate::ipvs) struct Exchange {
    sequence: u32,
    port: u32,
    interrupted: bool,
}

impl Exchange {
    pub(in crate::ipvs) const fn new(sequence: u32, port: u32) -> Self {
        Self {
            sequence,
            port,
            interrupted: false,
        }
    }

    /// Takes one datagram, hands the messages of the answer to `take`.
    pub(in crate::ipvs) fn datagram<M: NetlinkDeserializable>(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(M) -> Result<(), DecodeError>,
    ) -> Result<Outcome, DecodeError> {
        while !bytes.is_empty() {
            let header = NetlinkBuffer::new_checked(bytes)?;
            let length = usize::try_from(header.length()).map_err(|e| e.to_string())?;
            let (message, _) = bytes
                .split_at_checked(length)
                .ok_or("a message cut short")?;
            // Messages start at multiples of four; the last need not be padded.
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            if header.sequence_number() != self.sequence || header.port_number() != self.port {
                continue;
            }
            self.interrupted |= header.flags() & NLM_F_DUMP_INTR != 0;
            let outcome = match header.message_type() {
                NLMSG_OVERRUN => Outcome::Overrun,
                NLMSG_DONE | NLMSG_ERROR => self.end(message)?,
                _ => match NetlinkMessage::<M>::deserialize(message)?.payload {
                    NetlinkPayload::InnerMessage(inner) => {
                        take(inner)?;
                        Outcome::More
                    }
                    _ => Outcome::More,
                },
            };
            if !matches!(outcome, Outcome::More) {
                return Ok(outcome);
            }
        }
        Ok(Outcome::More)
    }

    fn end(&self, message: &[u8]) -> Result<Outcome, DecodeError> {
        let code = match NetlinkMessage::<Nothing>::deserialize(message)?.payload {
            NetlinkPayload::Error(error) => error.raw_code(),
            // A dump that failed on its way says so here.
            NetlinkPayload::Done(done) => done.code,
            _ => 0,
        };
        Ok(match (code, self.interrupted) {
            (0, true) => Outcome::Interrupted,
            (0, false) => Outcome::Complete,
            (code, _) => Outcome::Refused(io::Error::from_raw_os_error(code.saturating_abs())),
        })
    }
}

/// The payload of messages that have none of a family.
#[derive(Debug)]
struct Nothing;

impl NetlinkDeserializable for Nothing {
    type Error = DecodeError;
    fn deserialize(
        _header: &netlink_packet_core::NetlinkHeader,
        _payload: &[u8],
    ) -> Result<Self, DecodeError> {
        Ok(Self)
    }
}
