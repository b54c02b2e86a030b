//! Any bytes as the file `IDENTITY`. What is whole is what would be written.

use outlast::internals::outbox::probe::{Identity, decode_identity, encode_identity};

pub fn run(data: &[u8]) {
    match decode_identity(data) {
        Identity::Known { id, whole: true } => {
            // The same number may be written in digits of other case, or with a sign.
            let again = encode_identity(&id);
            assert!(
                data.eq_ignore_ascii_case(again.as_bytes())
                    || decode_identity(again.as_bytes()) == decode_identity(data)
            );
        }
        Identity::Known { whole: false, .. } | Identity::Newer { .. } | Identity::Missing | Identity::Damaged => {}
    }
}
