"""Google Cloud Run, Knative Serving, and others that name a port: `qwonnx serve --platform cloud-run` listens on PORT.

The routes are the application's own. Where Cloud Run checks who calls (IAM), callers may send its token in
X-Serverless-Authorization, so that Authorization is free for the server's key.
"""

from __future__ import annotations

from starlette.types import ASGIApp

from qwonnx.handlers.app import create_app
from qwonnx.handlers.functions.extensions import refuse_events
from qwonnx.handlers.functions.platform import Platform
from qwonnx.handlers.http.extension import Extension
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings


def application(host: ModelHost, settings: ServerSettings, platform: Platform) -> ASGIApp:
    """The application, which refuses events of Eventarc and Pub/Sub."""
    extension = Extension(middleware=refuse_events("HTTP requests of the API, or --platform cloudevents for events"))
    return create_app(host, settings, extension)
