//! The driver of the replica protocol: sockets, timers and the arbiter around `ft`'s state
//! machines.
