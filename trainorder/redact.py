"""Secrets in what a user wrote: recognised by their usual forms, and never printed."""

from __future__ import annotations

import re
from urllib.parse import unquote

NO_SECRETS = (
    "this looks like a secret, and params are copied into manifests, MLflow and reports; put it into an environment "
    "variable and name that (judge.endpoint.api_key_env). Its value is not repeated here"
)
_PREFIXES = (
    r"sk-|rk-|pk-|csk-|fk-|pplx-|xai-|gsk_|nvapi-|jina_|fw_|tgp_v1_|voyage-key-|pcsk_|lsv2_[a-z]{2}_"  # model providers
    r"|hf_|api_org_|r8_|wandb_v1_|dapi|dckr_[a-z]+_|npm_|pypi-|rubygems_|cio|crates_io_"  # hubs and registries
    r"|gh[a-z]_|github_pat_|gl[a-z]{2,6}-|ATATT|ATCTT|ATBB|bkua_|CCIPAT_"  # forges and their runners
    r"|xox[a-z](?:\.xox[a-z])?-|xapp-|xwfp-|ntn_|secret_|lin_api_|figd_|PMAK-|dp\.[a-z]{2,6}\."  # services
    r"|(?:sk|pk|rk|whsec)_(?:live|test)_|whsec_|sq0[a-z]{3}-|EAAA|shp[a-z]{2}_|SG\.|key-|re_|mg-"
    r"|AIza|ya29\.|1//0|GOCSPX-|do[a-z]_v1_|tskey-|hv[sbr]\.|sntry[su]_|glsa_|glc_|phc_|phx_|NRAK-|dd[a-z]_"  # clouds
    r"|AGE-SECRET-KEY-|PRIVATE-TOKEN|EZ[AT]K|sbp_|sb_secret_|pscale_[a-z]+_|LTAI|AQoD|FwoG|IQoJ|ops_eyJ"
)
SECRET = re.compile(
    rf"(?<![A-Za-z0-9])(?:{_PREFIXES})[\w.+/=-]{{12,}}"
    r"|(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]{8,}"
    r"|(?<![A-Za-z0-9])eyJ[\w-]{8,}\.[\w-]{8,}"  # a JSON web token
    r"|-----BEGIN|PuTTY-User-Key-File|(?i:\b(?:bearer\s+[\w.+/=~-]{8,}|basic\s+(?=\w*[\d=])[\w+/=]{8,}))"
    r"|://[^/?#\s]*@"  # an address with a user or a password
    r"|(?i:[?&;#](?:[\w-]*(?:key|token|secret|password|passwd|pwd|signature|credential)|auth|sig|code|jwt|access)=[^&\s])"
    r"|(?<![A-Za-z0-9])sk_[0-9a-f]{40,}"
    r"|(?i:(?:\b(?:[\w-]{0,32}api[_-]?key|password|passwd|secret)[\"']?\s*:|--(?:token|password|secret|api-key)[ =])\s*[\"']?(?=\S{0,64}\d)\S{8,})"
    r"|(?i:\b(?:accountkey|sharedaccesskey|password|passwd|pwd|secret|token|api[_-]?key)\s*=\s*\S)"
    r"|(?i:hooks\.slack\.com/(?:services|workflows)/\w|discord(?:app)?\.com/api/webhooks/\d)"
    r"|(?<!\d)\d{8,10}:[\w-]{35}(?![\w-])"  # a Telegram bot
    r"|\A\s*(?=(?:\D*\d){6})(?:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64})\s*\Z"  # a bare key in hex
    r"|(?<![\w/.-])(?=\w*[a-z])(?=\w*[A-Z])(?=\w*\d)[A-Za-z0-9]{32,}(?![\w/.-])"
    r"|\A\s*(?=\S*[a-z])(?=\S*[A-Z])(?=\S*\d)[A-Za-z0-9+/]{40}\s*\Z"  # as AWS makes them
)
"""What API keys, tokens, private keys and addresses with credentials look like; the last two are any long random text."""
SECRET_KEY = re.compile(
    r"api[_-]?key|secret|passw|passphrase|credential|(?:access|auth|refresh|bearer|id|hub|hf)[_-]?token|private[_-]?key"
    r"|authorization|^(?:token|key|pwd|bearer|cookie)$",
    re.IGNORECASE,
)
"""Keys under which a secret is expected."""


def is_secret(text: str) -> bool:
    """Whether a text holds something that looks like a secret, percent-encoded or not.

    >>> is_secret("https://host/v1?api_key=x"), is_secret("https://me@host/v1"), is_secret("npm_0123456789abcdef")
    (True, True, True)
    >>> is_secret("http://127.0.0.1:8000/v1"), is_secret("Qwen/Qwen3-0.6B-Base"), is_secret("a risk-averse_model_of_mine")
    (False, False, False)
    """
    return any(SECRET.search(form) for form in {text, unquote(text)})


def redact(text: str) -> str:
    """The text with everything that looks like a secret taken out, for messages of parsers that quote what they read."""
    return SECRET.sub("<secret>", text)
