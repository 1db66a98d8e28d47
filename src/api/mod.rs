//! HTTP on local sockets: the client of both APIs, and the director's operator socket.

pub mod client;
mod events;
pub mod operator;
