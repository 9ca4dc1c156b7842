"""The service's pages for people: one to try the model, one that describes the API. Neither needs another file."""

import base64
import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

__all__ = ["Page", "build_description_page", "build_trial_page"]

REFUSALS = {
    "400": "no JSON, or no HTTP",
    "401": "no key, or a wrong one",
    "408": "headers or a body that take too long",
    "413": "too many texts, or too long ones",
    "415": "another Content-Type than JSON's",
    "421": "a host that is not allowed",
    "422": "JSON of another shape, or pairs where single texts are expected",
    "429": "too many texts wait already",
    "500": "the model fails on this request",
    "503": "the model is being loaded, or the service ends",
}


@dataclass(frozen=True)
class Page:
    """HTML, and the policy that lets nothing act on it but its own style and script."""

    content: str
    policy: str


def build_trial_page(name: str, wants_key: bool) -> Page:
    """Build the page on which a person tries the model.

    Args:
        name: Of the model.
        wants_key: Whether requests have to bring the service's key.
    """
    return _build("page.html", "page.js", name=name, wants_key=wants_key)


def build_description_page(name: str, document: dict[str, Any]) -> Page:
    """Build the page that describes the API, by its OpenAPI document."""
    schemas = document["components"]["schemas"]
    operations = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            answer = operation["responses"]["200"]["content"]
            operations.append(
                {
                    "name": f"{method.upper()} {path}",
                    "anchor": f"{method}{path.replace('/', '-')}",
                    "summary": operation["summary"],
                    "description": operation["description"],
                    "is_locked": bool(operation.get("security")),
                    "takes": None if body is None else _list_fields(body, schemas),
                    "gives": _list_fields(answer.get("application/json", {}).get("schema", {}), schemas),
                    "kind": next(iter(answer)),
                    "example": _write_example(method, path, body is not None),
                    "refusals": {code: REFUSALS[code] for code in operation["responses"] if code in REFUSALS},
                }
            )
    return _build("api.html", None, name=name, operations=operations, version=document["info"]["version"])


def _build(template: str, script: str | None, **values: Any) -> Page:
    folder = files("finetune.serve")
    style = folder.joinpath("page.css").read_text("utf-8")
    code = "" if script is None else folder.joinpath(script).read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    content = environment.from_string(folder.joinpath(template).read_text("utf-8")).render(
        style=Markup(style), script=Markup(code), **values
    )
    allowed = [f"style-src '{_hash(style)}'", *([f"script-src '{_hash(code)}'; connect-src 'self'"] if code else [])]
    policy = (
        f"default-src 'none'; {'; '.join(allowed)}; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return Page(content, policy)


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _list_fields(schema: dict[str, Any], schemas: dict[str, Any], within: str = "") -> list[dict[str, str]]:
    """List the fields of an object with their types and descriptions, those of objects in its lists as well."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rsplit("/", 1)[1]]
    rows = []
    for name, field in schema.get("properties", {}).items():
        items = field.get("items", {})
        inside = "$ref" in items
        kind = "list of objects" if inside else _describe_type(field)
        rows.append({"name": f"{within}{name}", "kind": kind, "description": field.get("description", "")})
        if inside:
            rows += _list_fields(items, schemas, f"{within}{name}[].")
    return rows


def _describe_type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_describe_type(one) for one in field["anyOf"])
    if field.get("type") == "array":
        count = f"{field['minItems']} of " if field.get("minItems") == field.get("maxItems") is not None else ""
        inner = field.get("prefixItems", [field.get("items", {})])[0]
        return f"list of {count}{_describe_type(inner)}"
    if field.get("type") == "object":
        return f"object of {_describe_type(field['additionalProperties'])} by name"
    return str(field.get("type", "any"))


def _write_example(method: str, path: str, has_body: bool) -> str:
    if not has_body:
        return f"curl -s http://127.0.0.1:8000{path}"
    body = json.dumps({"text": "A wonderful film."})
    return f"curl -s http://127.0.0.1:8000{path} -H 'Content-Type: application/json' -d '{body}'"
