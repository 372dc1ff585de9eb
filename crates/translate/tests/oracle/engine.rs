//! The engine under test.

use sublet_engine::Engine;
use sublet_translate::TranslateEngine;

/// Open the binary-translation engine.
///
/// # Errors
/// A sentence that says why it does not run here.
pub fn open() -> Result<Box<dyn Engine>, String> {
    match TranslateEngine::new() {
        Ok(engine) => Ok(Box::new(engine)),
        Err(error) => Err(format!("the engine does not start: {error}")),
    }
}
