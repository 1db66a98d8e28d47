//! Suites that need no privileges of the kernel. Those over SSH run a real sshd and need root.

mod inventory;
mod ssh;
