//! Weights in a file beside the model, as PyTorch's exporter writes them by default.
//!
//! A model names the file, and the model may come from anybody: a name must stay inside the model's own directory, whatever
//! links are there, and what is read counts towards the limit of a model's size.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use prost::Message;

use super::proto::{GraphProto, TensorProto};
use super::{MAX_FILE, decode};
use crate::error::{Error, Result};

/// Where a tensor's data lie: in another file.
const EXTERNAL: i32 = 1;

/// The bytes of a model in one file, from those of a model whose weights may lie in others in `dir`.
///
/// # Errors
///
/// [`Error::Onnx`] naming the tensor and the file; [`Error::Limit`] if there is too much.
pub fn inline(bytes: Vec<u8>, dir: &Path) -> Result<Vec<u8>> {
    let mut model = decode(&bytes)?;
    let Some(graph) = &mut model.graph else { return Ok(bytes) };
    let mut tensors = tensors(graph).peekable();
    if tensors.peek().is_none() {
        return Ok(bytes);
    }
    let mut room = MAX_FILE.saturating_sub(bytes.len() as u64);
    for tensor in tensors {
        fill(tensor, dir, &mut room)?;
    }
    Ok(model.encode_to_vec())
}

/// All tensors whose data are elsewhere.
fn tensors(graph: &mut GraphProto) -> impl Iterator<Item = &mut TensorProto> {
    let attributes = graph.node.iter_mut().flat_map(|n| &mut n.attribute).filter_map(|a| a.t.as_mut());
    graph.initializer.iter_mut().chain(attributes).filter(|t| t.data_location == EXTERNAL)
}

fn fill(tensor: &mut TensorProto, dir: &Path, room: &mut u64) -> Result<()> {
    let name = tensor.name.clone();
    let bad = |why: String| Error::Onnx(format!("tensor {name}: {why}"));
    let entry = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.clone());
    let number = |key: &str| -> Result<Option<u64>> {
        let parse = |text: String| text.parse().map_err(|_| bad(format!("its {key} is {text:?}, no number")));
        entry(key).map(parse).transpose()
    };
    let location = entry("location").ok_or_else(|| bad("its data lie in a file without a name".into()))?;
    let file = inside(dir, &location).map_err(bad)?;
    let failed = |source| Error::File { path: file.clone(), source };
    let kind = std::fs::metadata(&file).map_err(failed)?;
    // Opening a pipe would wait for whoever writes to it.
    if !kind.is_file() {
        return Err(bad(format!("its data lie in {location}, which is no plain file")));
    }
    let (mut data, size) = (File::open(&file).map_err(failed)?, kind.len());
    let offset = number("offset")?.unwrap_or(0);
    let length = number("length")?.unwrap_or_else(|| size.saturating_sub(offset));
    if offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(bad(format!("its data end behind the {size} bytes of {location}")));
    }
    *room = room.checked_sub(length).ok_or_else(|| Error::Limit {
        what: "the size of the model and its weights in bytes".into(),
        found: MAX_FILE + length,
        allowed: MAX_FILE,
    })?;
    data.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| bad("it is too large".into()))?];
    data.read_exact(&mut bytes).map_err(failed)?;
    tensor.raw_data = bytes;
    tensor.data_location = 0;
    tensor.external_data = Vec::new();
    Ok(())
}

/// A file of this name in `dir`, or in a directory inside it.
fn inside(dir: &Path, location: &str) -> Result<PathBuf, String> {
    let name = Path::new(location);
    if location.is_empty()
        || !name.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
    {
        return Err(format!("its data lie in {location:?}, and only files beside the model are read"));
    }
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let failed = |e: std::io::Error| format!("its data lie in {location}, which cannot be read: {e}");
    let (home, file) = (dir.canonicalize().map_err(failed)?, dir.join(name).canonicalize().map_err(failed)?);
    if !file.starts_with(&home) {
        return Err(format!("its data lie in {location}, which is a link out of the model's directory"));
    }
    Ok(file)
}
