//! The floor: what any program has to pay to the kernel. Messages written by hand, a plain blocking
//! socket, answers counted and thrown away. Shares no code with the client that it is held against.
//!
//! Numbers: include/uapi/linux/netlink.h, genetlink.h and ip_vs.h (Linux 6.1).

use std::{io, net::Ipv4Addr};

use anyhow::{Context as _, Result, bail, ensure};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

use crate::table;

/// Messages in one call.
const BATCH: usize = 64;
/// What a receive call has room for. With 64 KiB a dump takes a quarter more: the kernel makes each
/// datagram of a dump as long as that, up to 32 KiB, and fills it with zeros first where
/// `init_on_alloc` is on, as in Debian.
const BUFFER: usize = 15 * 1024;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_ACK`, `NLM_F_REQUEST | NLM_F_DUMP`.
const ASK: u16 = 0x5;
const DUMP: u16 = 0x301;

const NEW_SERVICE: u8 = 1;
const GET_SERVICE: u8 = 4;
const NEW_DEST: u8 = 5;
const GET_DEST: u8 = 8;
const FLUSH: u8 = 17;

/// IPVS of the network namespace in which it was opened.
pub(crate) struct Floor {
    socket: Socket,
    family: u16,
    buffer: Vec<u8>,
}

impl Floor {
    pub(crate) fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let buffer = vec![0; BUFFER];
        let mut floor = Self {
            socket,
            family: 0,
            buffer,
        };
        floor.family = floor.look_up().context("the family IPVS was not found")?;
        Ok(floor)
    }

    /// `CTRL_CMD_GETFAMILY` to `GENL_ID_CTRL`; `CTRL_ATTR_FAMILY_ID` of the answer.
    fn look_up(&mut self) -> Result<u16> {
        let ask = message(16, ASK, 3, &attribute(2, b"IPVS\0"));
        self.socket.send(&ask, 0)?;
        let length = self.receive()?;
        let answer = self.buffer.get(20..length).context("it is too short")?;
        let mut rest = answer;
        while let Some(&[a, b, c, d, x, y, ..]) = rest.get(..6) {
            if u16::from_ne_bytes([c, d]) == 1 {
                self.acknowledgements(1)?;
                return Ok(u16::from_ne_bytes([x, y]));
            }
            let length = usize::from(u16::from_ne_bytes([a, b])).max(4);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        bail!("the kernel does not have it")
    }

    /// What makes the table, as bytes ready to be sent: a batch each, and how many messages it has.
    pub(crate) fn encode(&self) -> Vec<(Vec<u8>, usize)> {
        let mut messages = Vec::new();
        for (addr, port) in table::services() {
            let attrs = [service_id(addr, port), service_attrs()].concat();
            messages.push(self.ask(NEW_SERVICE, &attribute(1, &attrs)));
            let service = attribute(1, &service_id(addr, port));
            for (server, at) in table::dests() {
                let attrs = [service.clone(), attribute(2, &dest(server, at))].concat();
                messages.push(self.ask(NEW_DEST, &attrs));
            }
        }
        messages
            .chunks(BATCH)
            .map(|batch| (batch.concat(), batch.len()))
            .collect()
    }

    /// Sends one batch after the other, each when the one before is acknowledged.
    pub(crate) fn write(&mut self, batches: &[(Vec<u8>, usize)]) -> Result<()> {
        for (bytes, messages) in batches {
            self.socket.send(bytes, 0)?;
            self.acknowledgements(*messages)?;
        }
        Ok(())
    }

    /// The requests of [`Self::dump`], ready to be sent.
    pub(crate) fn encode_dump(&self) -> Vec<Vec<u8>> {
        let services = message(self.family, DUMP, GET_SERVICE, &[]);
        let dests = table::services().map(|(addr, port)| self.dump_of(addr, port));
        std::iter::once(services).chain(dests).collect()
    }

    /// Reads the services, then the destinations of each; how many messages came.
    pub(crate) fn dump(&mut self, requests: &[Vec<u8>]) -> Result<usize> {
        let mut found = 0;
        for request in requests {
            found += self.count(request)?;
        }
        Ok(found)
    }

    /// The request that [`Self::count`] takes for the destinations of a service.
    pub(crate) fn dump_of(&self, addr: Ipv4Addr, port: u16) -> Vec<u8> {
        message(
            self.family,
            DUMP,
            GET_DEST,
            &attribute(1, &service_id(addr, port)),
        )
    }

    /// How many messages a dump has.
    pub(crate) fn count(&mut self, request: &[u8]) -> Result<usize> {
        self.socket.send(request, 0)?;
        let mut found = 0;
        loop {
            let length = self.receive()?;
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while let Some(&[a, b, c, d, kind, ind, ..]) = rest.get(..6) {
                match u16::from_ne_bytes([kind, ind]) {
                    DONE => return Ok(found),
                    ERROR => bail!("the kernel refused a dump"),
                    _ => found += 1,
                }
                let length = usize::try_from(u32::from_ne_bytes([a, b, c, d]))?.max(16);
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    /// Whether all of the table is there, and nothing else.
    pub(crate) fn complete(&mut self) -> Result<bool> {
        let all = usize::from(table::SERVICES) * (1 + usize::from(table::DESTS));
        let requests = self.encode_dump();
        Ok(self.dump(&requests)? == all)
    }

    pub(crate) fn flush(&mut self) -> Result<()> {
        let ask = self.ask(FLUSH, &[]);
        self.socket.send(&ask, 0)?;
        self.acknowledgements(1)
    }

    fn ask(&self, command: u8, attributes: &[u8]) -> Vec<u8> {
        message(self.family, ASK, command, attributes)
    }

    fn acknowledgements(&mut self, mut awaited: usize) -> Result<()> {
        while awaited > 0 {
            let length = self.receive()?;
            let datagram = self.buffer.get(..length).unwrap_or_default();
            let Some(&[kind, ind]) = datagram.get(4..6) else {
                bail!("an answer is too short");
            };
            ensure!(
                u16::from_ne_bytes([kind, ind]) == ERROR,
                "no acknowledgement"
            );
            match datagram.get(16..20) {
                Some(&[0, 0, 0, 0]) => awaited -= 1,
                Some(&[a, b, c, d]) => {
                    let errno = i32::from_ne_bytes([a, b, c, d]).saturating_neg();
                    return Err(io::Error::from_raw_os_error(errno))
                        .context("the kernel refused a message of the floor");
                }
                _ => bail!("an answer is too short"),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<usize> {
        let mut room = self.buffer.as_mut_slice();
        Ok(self.socket.recv(&mut room, 0)?)
    }
}

/// `struct nlmsghdr`, `struct genlmsghdr`, attributes.
fn message(family: u16, flags: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// `struct nlattr` and its value, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn inet_addr(addr: Ipv4Addr) -> [u8; 16] {
    let [a, b, c, d] = addr.octets();
    [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// `IPVS_SVC_ATTR_AF`, `_PROTOCOL`, `_ADDR`, `_PORT`.
fn service_id(addr: Ipv4Addr, port: u16) -> Vec<u8> {
    [
        attribute(1, &2_u16.to_ne_bytes()),
        attribute(2, &6_u16.to_ne_bytes()),
        attribute(3, &inet_addr(addr)),
        attribute(4, &port.to_be_bytes()),
    ]
    .concat()
}

/// `IPVS_SVC_ATTR_SCHED_NAME`, `_FLAGS` (none of those that an owner may set), `_TIMEOUT`,
/// `_NETMASK`.
fn service_attrs() -> Vec<u8> {
    [
        attribute(6, &[table::SCHEDULER.as_bytes(), b"\0"].concat()),
        attribute(7, &[[0; 4], 0x3d_u32.to_ne_bytes()].concat()),
        attribute(8, &[0; 4]),
        attribute(9, &[0xff; 4]),
    ]
    .concat()
}

/// `IPVS_DEST_ATTR_ADDR_FAMILY`, `_ADDR`, `_PORT`, `_FWD_METHOD` (NAT), `_WEIGHT`, `_U_THRESH`,
/// `_L_THRESH`, `_TUN_TYPE`, `_TUN_PORT`, `_TUN_FLAGS`.
fn dest(addr: Ipv4Addr, port: u16) -> Vec<u8> {
    [
        attribute(11, &2_u16.to_ne_bytes()),
        attribute(1, &inet_addr(addr)),
        attribute(2, &port.to_be_bytes()),
        attribute(3, &[0; 4]),
        attribute(4, &1_u32.to_ne_bytes()),
        attribute(5, &[0; 4]),
        attribute(6, &[0; 4]),
        attribute(13, &[0]),
        attribute(14, &[0; 2]),
        attribute(15, &[0; 2]),
    ]
    .concat()
}
