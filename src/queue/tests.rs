//! Named situations of the machine that need its inside.
