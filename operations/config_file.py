"""Reads and checks a Serve config file before anything is started. Serve finds many errors late, or not at all."""

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from operations import address
from operations.config_schema import Problem, problems
from operations.config_yaml import Document, Place, read_document

if TYPE_CHECKING:
    from deployments.encoder.settings import EncoderSettings

EXAMPLE = "config/serve.yaml shows the shape"


def read_config(path: Path) -> dict[str, Any]:
    """Reads a Serve config file and checks Serve's keys and values, and the arguments of the graph.

    Raises:
        StartError: the file cannot be read, or something in it is unknown, missing or wrong; the message names the line
            and the keys.
    """
    document = read_document(path)
    config = document.content
    _check(document, (), _shape(config))
    _check(document, (), _ports(config))

    from ray.serve.schema import ServeDeploySchema

    for place, problem in problems(ServeDeploySchema, address.for_schema(config)):
        raise document.error(place, problem)
    for index, application in enumerate(config["applications"]):
        _check_application(document, ("applications", index), application)
    return dict(config)


def _check(document: Document, place: Place, problem: Problem | None) -> None:
    if problem is not None:
        raise document.error((*place, *problem[0]), problem[1])


def _shape(config: Any) -> Problem | None:
    """Errors for which Serve's schema has less clear messages, or which it allows."""
    if not isinstance(config, dict):
        return (), f"not a Serve config: it has no list `applications`; {EXAMPLE}"
    applications = config.get("applications")
    if not isinstance(applications, list):
        there = "is not a list: begin each application with `- name: …`" if applications else "is missing or empty"
        return ("applications",), f"not a Serve config: it has no list `applications` ({there}); {EXAMPLE}"
    if not applications:
        return ("applications",), f"the list is empty, so there is nothing to serve; {EXAMPLE}"
    for group in ("http_options", "grpc_options"):
        if group in config and not (isinstance(config[group], dict) and config[group]):
            return (group,), "is empty or no mapping: give it keys such as `port`, or take it out"
    for key in ("name", "route_prefix"):
        seen: dict[str, int] = {}
        for index, application in enumerate(applications):
            if not isinstance(application, dict):
                return (
                    "applications",
                    index,
                ), f"is no mapping: an application has a name and an import_path; {EXAMPLE}"
            value = application.get(key, "/" if key == "route_prefix" else None)
            if key == "name" and not (isinstance(value, str) and value):
                return ("applications", index), "has no name: add `name: marqo`, or what clients are to call it"
            if isinstance(value, str) and (first := seen.setdefault(value, index)) != index:
                return (
                    "applications",
                    index,
                    key,
                ), f"`{value}` is that of applications[{first}] too: change one of them"
    return None


def _ports(config: Mapping[str, Any]) -> Problem | None:
    """Serve takes true as port 1, and notices an impossible port only after everything else has been started."""
    for group in ("http_options", "grpc_options"):
        options = config.get(group, {})
        port = options.get("port", 1)
        if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
            return (group, "port"), f"must be a number from 1 to 65535, without quotes, not {port!r}"
    return None


def _check_application(document: Document, place: Place, application: Mapping[str, Any]) -> None:
    environment = application.get("runtime_env") or {}
    if "working_dir" in environment or "py_modules" in environment:
        return  # its code is not on this machine
    target = _imported(document, place, application["import_path"])

    import graph

    if target is not graph.build_app and target is not graph.app:
        return
    args = application.get("args") or {}
    if target is not graph.build_app and args:
        raise document.error((*place, "args"), "graph:app takes no args: use `import_path: graph:build_app`")
    for where, problem in problems(graph.GraphArgs, args):
        raise document.error((*place, "args", *where), problem)
    _check_encoder(document, (*place, "args", "encoder"), graph.GraphArgs.model_validate(args).encoder)
    for index, deployment in enumerate(application.get("deployments") or ()):
        here = (*place, "deployments", index)
        name = deployment["name"]
        if name not in graph.USER_CONFIGS:
            known = ", ".join(graph.USER_CONFIGS)
            raise document.error((*here, "name"), f"the graph has no deployment `{name}`; it has {known}")
        _check_user_config(document, (*here, "user_config"), graph.USER_CONFIGS[name], deployment.get("user_config"))


def _imported(document: Document, place: Place, path: str) -> Any:
    place = (*place, "import_path")
    module, _, name = path.replace(":", ".").rpartition(".")
    advice = "for the graph of this project say `graph:build_app`"
    if not module or not name:
        raise document.error(place, f"`{path}` is no `module:name`; {advice}")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        raise document.error(place, f"the module `{module}` has no `{name}`; {advice}") from None
    except ModuleNotFoundError as error:
        raise document.error(place, f"there is no module `{error.name}`; {advice}") from None
    except ValidationError as error:  # of defaults that come from environment variables
        raise document.error(place, f"importing `{module}` failed: {error.errors()[0]['msg']}") from None
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        raise document.error(place, f"importing `{module}` failed: {type(error).__name__}: {reason}") from None


def _check_encoder(document: Document, place: Place, settings: "EncoderSettings") -> None:
    """Folders that the machine does not have, and models that the registry does not have."""
    from embedding.registry import lookup, names

    for index, folder in enumerate(settings.architectures):
        if not folder.is_dir():
            raise document.error(
                (*place, "architectures", index), f"there is no folder {folder}: name one that holds ARCH.json files"
            )
    for index, model in enumerate(settings.preload):
        if isinstance(model, str) and lookup(model) is None:
            near = difflib.get_close_matches(model, names(), n=1)
            advice = f"did you mean `{near[0]}`?" if near else "give its modelProperties as well"
            raise document.error(
                (*place, "preload", index),
                f"the model `{model}` is not in the registry; {advice} (MARQO_MODELS_TO_PRELOAD counts too)",
            )


def _check_user_config(document: Document, place: Place, settings: type[BaseModel] | None, value: Any) -> None:
    if value is None:
        return
    if settings is None:
        raise document.error(place, "this deployment takes no user_config: move its settings to `args`")
    for where, problem in problems(settings, value):
        raise document.error((*place, *where), problem)
