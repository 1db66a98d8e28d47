//! Tables that other programs wrote. PURE: text to the vocabulary and back; who calls has the file
//! and looks up the names.

pub mod ipvsadm;
