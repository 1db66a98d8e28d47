//! Makes the kernel's table the wanted one, again and again: `plan` decides, `task` does.

pub mod plan;
pub mod task;
