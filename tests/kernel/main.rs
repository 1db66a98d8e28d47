//! Tests that need root and a kernel with ip_vs.

mod ipvs;
