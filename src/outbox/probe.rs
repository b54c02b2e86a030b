//! Decoders of the outbox's own files, as fuzz targets reach them. Nothing else uses it.

use super::identity;
pub use super::identity::Identity;

/// What the bytes of a file `IDENTITY` say.
pub fn decode_identity(bytes: &[u8]) -> Identity {
    identity::decode(bytes)
}

/// The bytes of the file for an id.
pub fn encode_identity(id: &[u8; 16]) -> String {
    identity::encode(id)
}
