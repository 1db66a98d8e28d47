//! What the daemons tell of themselves: logs, metrics, and the port that shows them.

mod chain;
mod logs;
pub mod metrics;
mod serve;

pub use chain::Chain;
pub use logs::{Error as LogError, LogFormat, init as init_logs};
pub use serve::{Health, Heartbeat, serve};
