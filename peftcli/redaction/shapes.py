"""What credentials of known services look like: one list, for masking what is written and for checking what is trained on.

Prefixes, alphabets and lengths are what the services document and what public scanners look for. A shape is here only
where it says enough by itself: services whose keys are plain hexadecimal are known by the name before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

# a look-behind of Python has one width: three alternatives instead of one
_LEFT = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt])|(?<=%[0-9A-F][0-9A-F]))"
"""Nothing that a token could go on from; an escaped line end or character of a URL is no part of one."""
_RIGHT = r"(?![A-Za-z0-9])"
_MADE = r"(?=[\w.-]*?(?=[A-Za-z]{0,15}[0-9])[A-Za-z0-9]{16})"
"""Somewhere ahead are 16 letters and digits in a row, a digit among them: words joined by hyphens are no key."""


@dataclass(frozen=True)
class Shape:
    """A kind of credential. `marks`: one of them stands in any text that holds it, which is quick to tell."""

    kind: str
    marks: tuple[str, ...]
    pattern: str

    @cached_property
    def expression(self) -> re.Pattern[str]:
        """Compiled once, when first needed: most shapes are never looked for."""
        return re.compile(self.pattern)

    def may_be_in(self, text: str) -> bool:
        """A quick look for the fixed beginnings; False is certain."""
        return any(mark in text for mark in self.marks)

    def is_in(self, text: str) -> bool:
        """Whether a text holds a credential of this shape."""
        return self.may_be_in(text) and self.expression.search(text) is not None


def _token(kind: str, prefixes: str, rest: str) -> Shape:
    """A kind whose tokens begin with one of some prefixes (separated by spaces), which are its marks."""
    marks = tuple(prefixes.split())
    return Shape(kind, marks, f"{_LEFT}(?:{'|'.join(map(re.escape, marks))}){rest}")


SHAPES: tuple[Shape, ...] = (
    # -- models and data ---------------------------------------------------------------------------------------------
    _token("a Hugging Face token", "hf_ api_org_", r"[A-Za-z0-9]{30,}"),
    _token("an API key", "sk-", rf"{_MADE}[A-Za-z0-9_-]{{20,}}"),
    _token("a Groq key", "gsk_", r"[A-Za-z0-9]{40,}"),
    _token("an xAI key", "xai-", r"[A-Za-z0-9]{40,}"),
    _token("an NVIDIA key", "nvapi-", rf"{_MADE}[A-Za-z0-9_-]{{40,}}"),
    _token("a Perplexity key", "pplx-", r"[A-Za-z0-9]{40,}"),
    _token("a Replicate token", "r8_", r"[A-Za-z0-9]{30,}"),
    _token("a LangSmith key", "lsv2_pt_ lsv2_sk_", r"[0-9a-f]{32}_[0-9a-f]{10}"),
    _token("a Weights & Biases key", "wandb_v1_", r"[A-Za-z0-9_-]{30,}"),
    _token("a Pinecone key", "pcsk_", r"[A-Za-z0-9_]{40,}"),
    _token("a Databricks token", "dapi", r"[0-9a-f]{32}(?:-\d)?" + _RIGHT),
    # -- clouds ------------------------------------------------------------------------------------------------------
    _token("an AWS access key", "AKIA ASIA ABIA ACCA", r"[0-9A-Z]{16}" + _RIGHT),
    _token("a Google API key", "AIza", r"[0-9A-Za-z_-]{30,}"),
    _token("a Google client secret", "GOCSPX-", r"[A-Za-z0-9_-]{20,}"),
    _token("a Google access token", "ya29.", r"[A-Za-z0-9_-]{20,}"),
    _token("a Google refresh token", "1//0", r"[A-Za-z0-9_-]{30,}"),
    Shape(
        "an Azure storage key",
        ("AccountKey=", "SharedAccessKey=", "SharedAccessSignature=", "sig="),
        r"(?<=AccountKey=)[A-Za-z0-9+/]{40,}={0,2}|(?<=SharedAccessKey=)[A-Za-z0-9+/]{40,}={0,2}"
        r"|(?<=[?&;]sig=)[A-Za-z0-9%+/]{40,}={0,2}",
    ),
    Shape(
        "an Azure client secret",
        ("Q~",),
        _LEFT + r"[A-Za-z0-9_~.]{3}\dQ~[A-Za-z0-9_~.-]{31,34}",
    ),
    _token("a DigitalOcean token", "dop_v1_ doo_v1_ dor_v1_", r"[0-9a-f]{40,}"),
    _token("an Alibaba access key", "LTAI", r"[A-Za-z0-9]{16,24}" + _RIGHT),
    _token("a Heroku key", "HRKU-", r"[A-Za-z0-9_-]{36,}"),
    _token("a Fly.io token", "fo1_ fm1a_ fm1r_ fm2_", r"[A-Za-z0-9+/_-]{40,}={0,3}"),
    _token("a Cloudflare key", "v1.0-", r"[0-9a-f]{24}-[0-9a-f]{100,}"),
    _token("a Supabase key", "sbp_ sb_secret_", r"[A-Za-z0-9_]{30,}"),
    _token("a PlanetScale password", "pscale_tkn_ pscale_oauth_ pscale_pw_", r"[\w.=-]{32,}"),
    Shape("a Terraform token", (".atlasv1.",), r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,}"),
    _token("a Pulumi token", "pul-", r"[0-9a-f]{40}" + _RIGHT),
    _token("an OpenShift token", "sha256~", r"[\w-]{43}"),
    # -- code and packages -------------------------------------------------------------------------------------------
    _token("a GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", r"[A-Za-z0-9_]{30,}"),
    _token("a GitHub token", "github_pat_", r"[A-Za-z0-9_]{22,}"),
    _token("a GitLab token", "glpat- gldt- glrt- glcbt- glptt- glft- glsoat- glimt- glagent- gloas-", r"[\w.-]{20,}"),
    _token("a GitLab runner token", "GR1348941", r"[\w-]{20,}"),
    _token("an Atlassian token", "ATATT3 ATCTT3 ATBB", r"[A-Za-z0-9_=-]{28,}"),
    _token("an npm token", "npm_", r"[A-Za-z0-9]{30,}"),
    _token("a PyPI token", "pypi-", rf"{_MADE}[A-Za-z0-9_-]{{30,}}"),
    _token("a RubyGems key", "rubygems_", r"[0-9a-f]{48}"),
    _token("a Docker token", "dckr_pat_ dckr_oat_", r"[A-Za-z0-9_-]{20,}"),
    _token("an Artifactory key", "AKCp", r"[A-Za-z0-9]{60,}"),
    _token("an Artifactory token", "cmVmd", r"[A-Za-z0-9]{59}" + _RIGHT),
    _token("a Sourcegraph token", "sgp_", r"(?:[A-Za-z0-9]{5,16}_)?[0-9a-fA-F]{40}"),
    _token("a Clojars token", "CLOJARS_", r"[a-z0-9]{60}"),
    _token("an Octopus key", "API-", r"[A-Z0-9]{26}" + _RIGHT),
    _token("a Postman key", "PMAK-", r"[0-9a-fA-F]{24}-[0-9a-fA-F]{34}"),
    _token("a Prefect key", "pnu_", r"[A-Za-z0-9]{36}"),
    # -- messages and mail -------------------------------------------------------------------------------------------
    _token("a Slack token", "xoxa- xoxb- xoxe- xoxe. xoxo- xoxp- xoxr- xoxs- xapp- xwfp-", r"[A-Za-z0-9.-]{10,}"),
    Shape("a Slack webhook", ("hooks.slack.com/",), r"(?<=hooks\.slack\.com/)[a-z]+/[A-Za-z0-9+/_-]{30,}"),
    Shape("a Teams webhook", (".webhook.office.com/",), r"(?<=\.webhook\.office\.com/)webhookb2/[A-Za-z0-9@/-]{60,}"),
    Shape(
        "a Discord token",
        (".",),
        _LEFT + r"(?=[\w-]*\d)[MNO][A-Za-z0-9_-]{23,27}\.[A-Za-z0-9_-]{6}\.(?=[\w-]*\d)[A-Za-z0-9_-]{27,}",
    ),
    Shape("a Discord webhook", ("/api/webhooks/",), r"(?<=/api/webhooks/)\d{15,}/[A-Za-z0-9_-]{50,}"),
    Shape("a Telegram token", (":A",), _LEFT + r"\d{6,16}:A[A-Za-z0-9_-]{34}(?![A-Za-z0-9_-])"),
    _token("a Twilio key", "SK AC", r"[0-9a-f]{32}" + _RIGHT),
    _token("a SendGrid key", "SG.", r"[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{20,}"),
    _token("a Mailgun key", "key-", r"[0-9a-f]{32}" + _RIGHT),
    Shape("a Mailchimp key", ("-us",), _LEFT + r"[0-9a-f]{32}-us\d{1,2}" + _RIGHT),
    _token("a Brevo key", "xkeysib-", r"[0-9a-f]{64}-[A-Za-z0-9]{16}"),
    # -- money and shops ---------------------------------------------------------------------------------------------
    Shape("a Stripe key", ("k_live_", "k_test_", "k_prod_"), _LEFT + r"[sr]k_(?:live|test|prod)_[A-Za-z0-9]{10,}"),
    _token("a webhook secret", "whsec_", r"[A-Za-z0-9+/]{24,}={0,2}"),
    _token("a Shopify token", "shpat_ shpca_ shppa_ shpss_", r"[0-9a-fA-F]{32}"),
    _token("a Square token", "sq0atp- sq0csp-", r"[A-Za-z0-9_-]{22,}"),
    Shape("a Square or Facebook token", ("EAA",), r"(?<![A-Za-z0-9+/])EAA[A-Za-z0-9][A-Za-z0-9_-]{56,}"),
    _token("a Flutterwave key", "FLWSECK_TEST- FLWSECK-", r"[0-9a-zA-Z]{12,}"),
    _token("an EasyPost key", "EZAK EZTK", r"[A-Za-z0-9]{54}" + _RIGHT),
    _token("a Shippo token", "shippo_live_ shippo_test_", r"[0-9a-fA-F]{40}"),
    # -- other services ----------------------------------------------------------------------------------------------
    _token("a Linear key", "lin_api_ lin_oauth_", r"[A-Za-z0-9]{32,}"),
    _token("a Notion token", "ntn_ secret_", r"(?=[A-Za-z]*\d)[A-Za-z0-9]{43,}"),
    _token("an Airtable token", "pat", r"[A-Za-z0-9]{14}\.[0-9a-f]{64}"),
    _token("a Figma token", "figd_", r"[A-Za-z0-9_-]{36,}"),
    _token("a Dropbox token", "sl.", r"[A-Za-z0-9_-]{100,}"),
    _token("a Typeform token", "tfp_", r"[\w.=-]{40,}"),
    _token("a Grafana token", "glc_ glsa_", r"[A-Za-z0-9+/_]{32,}={0,3}"),
    _token("a New Relic key", "NRAK- NRII- NRJS-", r"[A-Za-z0-9-]{19,}"),
    _token("a Sentry token", "sntrys_ sntryu_", r"[A-Za-z0-9+/=_]{40,}"),
    _token("a Dynatrace token", "dt0c01. dt0s16.", r"[A-Z0-9a-z]{24}\.[A-Za-z0-9]{64}"),
    _token("a Doppler token", "dp.pt. dp.st. dp.sa. dp.ct. dp.scim. dp.audit.", r"[\w.]{40,}"),
    _token("a Vault token", "hvs. hvb. hvr.", r"[A-Za-z0-9_-]{24,}"),
    _token("a Vault token", "s.", r"(?=[A-Za-z]*\d)(?=\w*[A-Z])(?=\w*[a-z])[A-Za-z0-9]{24}(?![\w.(-])"),
    _token("a 1Password token", "ops_eyJ", r"[A-Za-z0-9+/]{100,}={0,3}"),
    _token("an age key", "AGE-SECRET-KEY-1", r"[0-9A-Z]{58}"),
    # -- of no service -----------------------------------------------------------------------------------------------
    _token("a signed token", "eyJ", r"[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    Shape(
        "a private key",
        ("PRIVATE KEY",),
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
        r"(?:(?s:.*?)-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|[A-Za-z0-9+/=\\\s]*)",
    ),
    Shape(
        "a password in an address",
        ("://",),
        r"(?<=://)[^\s/:@\"'<>]*:[^\s/@\"'<>]{3,}(?=@[^\s/])|(?<=://)[0-9a-f]{32}(?=@[^\s/])",
    ),
)
"""Every known shape of a credential, the only list: what hides them and what warns of them read it."""


def shapes_in(text: str) -> Iterator[Shape]:
    """The shapes that a text holds."""
    return (shape for shape in SHAPES if shape.is_in(text))
