"""The method table as an OpenRPC document (OpenRPC 1.3), with JSON Schema 2020-12."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from ctd.protocols.jsonrpc import CODES
from ctd.protocols.methods import Example, Method

_REF = "#/components/schemas/{name}"


def document(methods: Iterable[Method], version: str) -> dict[str, Any]:
    """Describe *methods*; *version* is that of the API, which is ctd's."""
    methods = list(methods)
    types = [t for m in methods for t in (m.params, m.result)]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    described = []
    for number, method in enumerate(methods):
        params, result = schemas[2 * number : 2 * number + 2]
        described.append(_method(method, components[_name(params)], result))
    for schema in schemas[::2]:  # parameters are described one by one, not as an object
        components.pop(_name(schema), None)
    return {
        "openrpc": "1.3.2",
        "info": {
            "title": "ctd control protocol",
            "version": version,
            "description": "JSON-RPC 2.0, one object a line, on a unix socket.",
            "license": {"name": "Apache-2.0"},
        },
        "methods": described,
        "components": {
            "schemas": components,
            "errors": {
                kind: {"code": code, "message": kind.replace("_", " "), "data": {"kind": kind}}
                for kind, code in CODES.items()
            },
        },
    }


def _name(schema: dict[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _method(method: Method, params: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    summary = method.doc.partition("\n\n")[0].replace("\n", " ")
    required = set(params.get("required", ()))
    kinds = ("invalid_argument", *method.errors, "cancelled", "internal")
    return {
        "name": method.name,
        "summary": summary,
        "description": method.doc,
        "tags": [{"name": method.name.partition(".")[0]}],
        "paramStructure": "by-name",
        "params": [
            _parameter(name, schema, name in required)
            for name, schema in sorted(
                params["properties"].items(), key=lambda p: (p[0] not in required, p[0])
            )
        ],
        "result": {"name": "result", "schema": result},
        "errors": [{"$ref": f"#/components/errors/{kind}"} for kind in dict.fromkeys(kinds)],
        "examples": [_example(method.name, e, n) for n, e in enumerate(method.examples, 1)],
    }


def _parameter(name: str, schema: dict[str, Any], required: bool) -> dict[str, Any]:
    parameter = {"name": name, "required": required, "schema": schema}
    if "description" in schema:
        parameter["description"] = schema["description"]
    return parameter


def _example(method: str, example: Example, number: int) -> dict[str, Any]:
    return {
        "name": f"{method}-{number}",
        "params": [{"name": k, "value": v} for k, v in example.params.items()],
        "result": {"name": "result", "value": example.result},
    }
