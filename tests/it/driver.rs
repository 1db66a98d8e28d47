//! Operating systems installed by drivers: sushy-tools' Redfish emulator, a controller with the quirks
//! that it lacks, and a site's own driver. The machine that they power is an sshd on loopback.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]
#![expect(
    clippy::disallowed_methods,
    reason = "tasks of a test end with its runtime"
)]

mod bmc;
mod emulator;
mod lab;
mod redfish;
mod site;
