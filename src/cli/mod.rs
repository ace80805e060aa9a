//! placeholder of a folder to come
