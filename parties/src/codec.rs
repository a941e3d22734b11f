//! Control messages as bytes: bincode with fixed integers, little-endian, behind a header of eight bytes.
//!
//! A frame is its kind (2 bytes), the format's version (2), the length of the body (4), and the body. The
//! reader says which kind is due, and the kind says how long a body may be, before anything is allocated.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes before the body.
pub const FRAME_HEADER_BYTES: usize = 8;

/// Changes with the format of any message.
pub const FORMAT: u16 = 1;

/// No control message may be longer; whatever is large travels as bulk bytes of announced length.
pub const MAX_BODY: usize = 32 << 20;

/// A control message.
pub trait Message: Serialize + DeserializeOwned {
    /// Its number on the wire.
    const KIND: u16;
    /// What errors call it.
    const NAME: &'static str;
    /// The longest body, at most [`MAX_BODY`].
    const MAX: usize;
}

/// Why bytes are not the message that is due. The text says what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad(pub String);

/// The frame of `message`.
///
/// # Errors
/// [`Bad`] if it is longer than [`Message::MAX`].
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, Bad> {
    let body = bincode::serde::encode_to_vec(message, config()).map_err(|e| Bad(e.to_string()))?;
    if body.len() > M::MAX {
        return Err(Bad(format!("a {} of {} bytes, the limit is {}", M::NAME, body.len(), M::MAX)));
    }
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + body.len());
    frame.extend_from_slice(&M::KIND.to_le_bytes());
    frame.extend_from_slice(&FORMAT.to_le_bytes());
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Kind and body length of a frame.
///
/// # Errors
/// [`Bad`] if the format is not ours.
pub fn decode_header(header: &[u8; FRAME_HEADER_BYTES]) -> Result<(u16, usize), Bad> {
    let [k0, k1, f0, f1, l0, l1, l2, l3] = *header;
    let format = u16::from_le_bytes([f0, f1]);
    if format != FORMAT {
        return Err(Bad(format!("message format {format}, here it is {FORMAT}")));
    }
    Ok((u16::from_le_bytes([k0, k1]), u32::from_le_bytes([l0, l1, l2, l3]) as usize))
}

/// The message in `body`, all of which must be used.
///
/// # Errors
/// [`Bad`] if the bytes are not such a message.
pub fn decode_body<M: Message>(body: &[u8]) -> Result<M, Bad> {
    if body.len() > M::MAX {
        return Err(Bad(format!("a {} of {} bytes, the limit is {}", M::NAME, body.len(), M::MAX)));
    }
    let (message, used) = bincode::serde::decode_from_slice(body, config())
        .map_err(|_| Bad(format!("bytes that are no {}", M::NAME)))?;
    if used != body.len() {
        return Err(Bad(format!("a {} with {} bytes left over", M::NAME, body.len() - used)));
    }
    Ok(message)
}

/// The bytes of a public value that is not a message of its own, as a manifest.
///
/// # Errors
/// [`Bad`] if it is longer than [`MAX_BODY`].
pub fn encode_value<T: Serialize>(value: &T) -> Result<Vec<u8>, Bad> {
    let bytes = bincode::serde::encode_to_vec(value, config()).map_err(|e| Bad(e.to_string()))?;
    if bytes.len() > MAX_BODY { Err(Bad(format!("{} bytes", bytes.len()))) } else { Ok(bytes) }
}

/// The value in `bytes`, all of which must be used.
///
/// # Errors
/// [`Bad`] if the bytes are no such value.
pub fn decode_value<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Bad> {
    match bincode::serde::decode_from_slice(bytes, config()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(Bad(format!("{} bytes are left over", bytes.len() - used))),
        Err(_) => Err(Bad("it cannot be decoded".into())),
    }
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<MAX_BODY>()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        n: u32,
        text: String,
        pair: Option<(u8, u16)>,
    }

    impl Message for Sample {
        const KIND: u16 = 0x0102;
        const NAME: &'static str = "sample";
        const MAX: usize = 64;
    }

    fn sample() -> Sample {
        Sample { n: 7, text: "ab".into(), pair: Some((1, 2)) }
    }

    const GOLDEN: [u8; 26] = [
        2, 1, 1, 0, 18, 0, 0, 0, // header
        7, 0, 0, 0, // n
        2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b', // text
        1, 1, 2, 0, // pair
    ];

    #[test]
    fn bytes_are_golden() {
        assert_eq!(encode(&sample()).unwrap(), GOLDEN);
        let header: [u8; 8] = GOLDEN[..8].try_into().unwrap();
        assert_eq!(decode_header(&header), Ok((Sample::KIND, 18)));
        assert_eq!(decode_body::<Sample>(&GOLDEN[8..]), Ok(sample()));
    }

    #[test]
    fn bad_bytes_are_refused() {
        let body = &GOLDEN[8..];
        for cut in 0..body.len() {
            assert!(decode_body::<Sample>(&body[..cut]).is_err(), "cut at {cut}");
        }
        let mut long = body.to_vec();
        long.push(0);
        assert!(decode_body::<Sample>(&long).unwrap_err().0.contains("left over"));
        let mut huge = body.to_vec();
        huge[4..12].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(decode_body::<Sample>(&huge).is_err(), "a length that memory has not");
        let mut tag = body.to_vec();
        tag[14] = 9;
        assert!(decode_body::<Sample>(&tag).is_err(), "neither Some nor None");
        assert!(decode_body::<Sample>(&[0; 65]).unwrap_err().0.contains("limit"));
        assert!(encode(&Sample { text: "x".repeat(60), ..sample() }).is_err());
        assert!(decode_header(&[2, 1, 9, 0, 0, 0, 0, 0]).is_err());
    }
}
