//! Makes the kernel's table the wanted one, again and again: `plan` says how, `drift` says what
//! becomes of what others changed, `task` does it, `work` keeps the account of one service in one
//! pass. `addresses` says how virtual addresses become the wanted ones.

pub mod addresses;
pub mod drift;
pub mod plan;
mod stalled;
pub mod task;
mod work;

#[cfg(test)]
mod testing;
