//! PURE: which of the datagrams that arrive are the answers to requests, and when they are complete.

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer,
};

/// How the answer to one request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ipvs) enum Outcome {
    /// It is complete.
    Complete,
    /// It is complete, but what it describes changed meanwhile (`NLM_F_DUMP_INTR`).
    Interrupted,
    /// The kernel refused, with this error number.
    Refused(i32),
    /// The kernel had no room for an answer (`NLMSG_OVERRUN`).
    Overrun,
}

/// The answers to requests with consecutive sequence numbers as they come in: each ends with an
/// acknowledgement, an error, or the end of the dump. A message with another sequence number or
/// port, a late answer to a request that timed out, is passed over.
#[derive(Debug)]
pub(in crate::ipvs) struct Exchange {
    first: u32,
    port: u32,
    interrupted: bool,
    outcomes: Vec<Option<Outcome>>,
    open: usize,
}

impl Exchange {
    /// Of `count` requests, numbered from `first`.
    pub(in crate::ipvs) fn new(first: u32, count: usize, port: u32) -> Self {
        Self {
            first,
            port,
            interrupted: false,
            outcomes: vec![None; count],
            open: count,
        }
    }

    /// Whether every answer is complete.
    pub(in crate::ipvs) const fn is_complete(&self) -> bool {
        self.open == 0
    }

    /// How each answer ended, in the order of the requests; `None` is still open.
    pub(in crate::ipvs) fn into_outcomes(self) -> Vec<Option<Outcome>> {
        self.outcomes
    }

    /// Takes one datagram, hands the payload of the messages that are parts of answers to `take`.
    pub(in crate::ipvs) fn datagram(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        while !bytes.is_empty() {
            let header = NetlinkBuffer::new_checked(bytes)?;
            let length = usize::try_from(header.length()).map_err(|e| e.to_string())?;
            let payload = bytes.get(16..length).ok_or("a message cut short")?;
            // Messages start at multiples of four; the last need not be padded.
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            let nth = header.sequence_number().wrapping_sub(self.first);
            let nth = usize::try_from(nth).map_err(|e| e.to_string())?;
            let Some(outcome) = self.outcomes.get_mut(nth) else {
                continue;
            };
            if outcome.is_some() || header.port_number() != self.port {
                continue;
            }
            self.interrupted |= header.flags() & NLM_F_DUMP_INTR != 0;
            let ended = match header.message_type() {
                NLMSG_OVERRUN => Outcome::Overrun,
                NLMSG_DONE | NLMSG_ERROR => match (code(payload)?, self.interrupted) {
                    (0, true) => Outcome::Interrupted,
                    (0, false) => Outcome::Complete,
                    (code, _) => Outcome::Refused(code.saturating_abs()),
                },
                NLMSG_NOOP => continue,
                _ => {
                    take(payload)?;
                    continue;
                }
            };
            *outcome = Some(ended);
            self.open = self.open.saturating_sub(1);
        }
        Ok(())
    }
}

/// What begins the payload of an acknowledgement, an error and, since a dump that failed on its way
/// says so there, the end of a dump: an error number, negative, or zero.
fn code(payload: &[u8]) -> Result<i32, DecodeError> {
    match payload.first_chunk() {
        Some(bytes) => Ok(i32::from_ne_bytes(*bytes)),
        // Nothing is what kernels before 2.6 sent at the end of a dump.
        None if payload.is_empty() => Ok(0),
        None => Err("an error number cut short".into()),
    }
}
