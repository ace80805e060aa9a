//! The engine under simulated time, disk and faults.
