use super::*;

fn list(fields: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::new();
    fields.iter().for_each(|(name, value)| headers.append_bytes(name.as_bytes(), value.as_bytes()));
    headers
}
