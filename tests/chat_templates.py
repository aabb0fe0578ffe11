"""Chat templates in the public form of current models, with small tokenizers that have their special tokens.

Each entry says what is to be found out about it; tests/test_lm_chat.py plays every one of them.
"""

import os
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

_LINES = [
    "Use the tools to do what the user asks. A message without a tool call is the final answer.",
    '{"type": "function", "function": {"name": "find_file", "description": "Find a file.", "parameters": {}}}',
    '{"name":"get_event","arguments":{"event_id":"E9508"}} [{"path":"/brive/a.txt","owner":"fukle@post.net"}]',
    "<|im_end|> <|eot_id|> <start_of_turn> [INST] </s> the words of a mail may spell such things\n\n",
] * 4


@dataclass(frozen=True)
class Case:
    """A template, its tokens, and what :class:`agent_gym.lm.chat.Chat` has to make of it.

    Args:
        template: The Jinja source, or named sources.
        special: The tokenizer's special tokens.
        eos: The one that its configuration names as the end.
        parser: The name of the format that the template teaches; None where it is refused.
        refused: A part of the sentence in which it is refused.
        added: Added tokens that are not special.
        bos: The token that begins a conversation.
        kind: ``"bytes"`` (byte-level), or sentencepiece's ways: ``"prepend"``, ``"first"``, ``"never"``.
        listed: Whether the tools go into the system's words, since the template shows none.
        system: Whether there is a system role.
        results: The role in which results are said.
        ends: Tokens that end a turn, besides ``eos``.
        options: Arguments of ``Chat``.
        keeps: Whether the whole conversation, rendered at once, has the turns as they were appended.
        strips: Tokens that swallow the blanks after them.
    """

    template: str | dict[str, str]
    special: str
    eos: str
    parser: str | None = None
    refused: str = ""
    added: str = ""
    bos: str | None = None
    kind: str = "bytes"
    listed: bool = False
    system: bool = True
    results: str = "tool"
    ends: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    keeps: bool = True
    strips: str = ""


def tokenizer(case: Case) -> PreTrainedTokenizerFast:
    """A tokenizer of some hundred tokens with those of ``case``."""
    made = _bytes() if case.kind == "bytes" else _sentencepiece(case.kind)
    special = case.special.split()
    made.add_special_tokens(
        [AddedToken(t, special=True, normalized=False, rstrip=t in case.strips.split()) for t in special]
    )
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in case.added.split()])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=case.bos, eos_token=case.eos)
    template = case.template
    wrapped.chat_template = template if isinstance(template, dict) else template.strip("\n")
    return wrapped


@cache
def published(package: str) -> Any:
    """A published tokenizer, or None; ``.ci/tokenizers`` fetches them."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("AGENT_GYM_TOKENIZERS") or root / ".cache" / "tokenizers", package)
    return AutoTokenizer.from_pretrained(folder) if (folder / "tokenizer.json").is_file() else None


def needed(package: str) -> Any:
    if (found := published(package)) is None:
        if os.environ.get("AGENT_GYM_REQUIRE_TOKENIZERS"):
            pytest.fail(f"the tokenizer {package!r} is missing; run .ci/tokenizers")
        pytest.skip(f"the tokenizer {package!r} is not here; .ci/tokenizers fetches it")
    return found


def _bytes() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        _LINES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def _sentencepiece(kind: str) -> Tokenizer:
    """Blanks as U+2581, bytes for what is not in the vocabulary."""
    letters = ["\u2581", *map(chr, range(33, 127))]
    merges = [
        ("\u2581", "["),
        ("\u2581", "<"),
        ("\u2581", "t"),
        ("\u2581", "a"),
        ("e", "r"),
        ("\u2581t", "o"),
        ("|", ">"),
    ]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *(a + b for a, b in merges)]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces, pieces = normalizers.Replace(" ", "\u2581"), [decoders.Replace("\u2581", " "), decoders.ByteFallback()]
    if kind == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
        made.decoder = decoders.Sequence([*pieces, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    elif kind == "first":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        made.decoder = decoders.Sequence([*pieces, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        made.normalizer = spaces
        made.pre_tokenizer = pre_tokenizers.Split(Regex("\u2581"), "merged_with_previous")
        made.decoder = decoders.Sequence([*pieces, decoders.Fuse()])
    return made


_IM = "<|endoftext|> <|im_start|> <|im_end|>"
_CALL_TAGS = "<tool_call> </tool_call>"
_THINK_TAGS = "<think> </think>"
_LLAMA = "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|eom_id|> <|python_tag|>"

CHATML = """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""

SMOLLM2 = """
{% for message in messages -%}
{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}{% endif -%}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""

# Hermes calls, as Qwen2.5 writes them; results are a user's turn with tags.
_QWEN_TOOLS = """
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {{- (messages[0].content if messages[0].role == 'system' else DEFAULT) + '\n\n' }}
    {{- '# Tools\n\nFunctions you may call, within <tools></tools>:\n<tools>' }}
    {%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\n</tools>\n\nFor each call, a json object within <tool_call></tool_call>:\n<tool_call>\n' }}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- elif DEFAULT %}
    {{- '<|im_start|>system\n' + DEFAULT + '<|im_end|>\n' }}
{%- endif %}
"""
_QWEN_CALLS = """
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {{- '\n' if content or not loop.first else '' }}
            {{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
"""
_QWEN_RESULTS = """
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
"""

QWEN2_5 = (
    "{%- set DEFAULT = 'You are Qwen.' %}"
    + _QWEN_TOOLS
    + """
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {{- '<|im_start|>assistant\n' + (content or '') }}
"""
    + _QWEN_CALLS
    + _QWEN_RESULTS
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"
)

# Thoughts are kept after the last question only; the last turn always has its block.
_QWEN3_TURNS = """
{%- set ns = namespace(asked=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' and not message.content.startswith('<tool_response>') %}
        {%- set ns.asked = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set thought = message.reasoning_content or '' %}
        {%- if not thought and '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.asked and (loop.last or thought) %}
            {{- '<think>\n' + thought + '\n</think>\n\n' }}
        {%- endif %}
        {{- content }}
"""

QWEN3 = (
    "{%- set DEFAULT = '' %}"
    + _QWEN_TOOLS
    + _QWEN3_TURNS
    + _QWEN_CALLS
    + _QWEN_RESULTS
    + """
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}
"""
)

QWEN3_THINKING = (
    "{%- set DEFAULT = '' %}"
    + _QWEN_TOOLS
    + _QWEN3_TURNS
    + _QWEN_CALLS
    + _QWEN_RESULTS
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)

_CODER_TOOLS = """
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- if system or tools %}
    {{- '<|im_start|>system\n' + (system or 'You are Qwen, who can use tools.') }}
    {%- if tools %}
        {{- '\n\n# Tools\n\nFunctions you have:\n\n<tools>' }}
        {%- for tool in tools %}
            {%- set tool = tool.function or tool %}
            {{- '\n<function>\n<name>' + tool.name + '</name>\n<description>' + tool.description | trim }}
            {{- '</description>\n<parameters>' }}
            {%- for name, schema in tool.parameters.properties | items %}
                {{- '\n<parameter>\n<name>' + name + '</name>\n' + schema | tojson + '\n</parameter>' }}
            {%- endfor %}
            {{- '\n</parameters>\n</function>' }}
        {%- endfor %}
        {{- '\n</tools>\n\nA call reads:\n\n<tool_call>\n<function=example_function_name>\n' }}
        {{- '<parameter=example_parameter>\nvalue\n</parameter>\n</function>\n</tool_call>' }}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endif %}
"""
_CODER_CALLS = """
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {{- '\n<tool_call>\n<function=' + call.name + '>\n' }}
            {%- for name, value in call.arguments | items %}
                {{- '<parameter=' + name + '>\n' + (value if value is string else value | tojson) }}
                {{- '\n</parameter>\n' }}
            {%- endfor %}
            {{- '</function>\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
"""

QWEN3_CODER = (
    _CODER_TOOLS
    + """
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content is string and message.content | trim %}{{- '\n' + message.content | trim }}{% endif %}
"""
    + _CODER_CALLS
    + _QWEN_RESULTS
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"
)

QWEN3_5 = (
    _CODER_TOOLS
    + """
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\n' + message.content | trim + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content | trim %}
        {{- '<|im_start|>assistant\n<think>\n' + (message.reasoning_content or '') | trim }}
        {{- '\n</think>\n\n' + content }}
"""
    + _CODER_CALLS
    + _QWEN_RESULTS
    + """
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {{- '<think>\n\n</think>\n\n' if enable_thinking is defined and enable_thinking is false else '<think>\n' }}
{%- endif %}
"""
)

# One call a turn; the tools stand in the first question.
_LLAMA3 = """
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = TODAY %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- if tools is not none and tools %}{{- 'Environment: ipython\n' }}{% endif %}
{{- 'Cutting Knowledge Date: December 2023\nToday Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}
{%- if tools is not none and tools %}
    {%- if messages | length == 0 %}{{- raise_exception('Cannot put tools in the first user message') }}{% endif %}
    {%- set first = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\n\nGiven these functions, answer with JSON for a call of one.\n\n' }}
    {{- 'Respond in the format {"name": function name, "parameters": dictionary of arguments}.\n\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\n\n' }}{% endfor %}
    {{- first + '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}
        {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
"""
LLAMA3_1 = _LLAMA3.replace("TODAY", "'26 Jul 2024'")
LLAMA3_2 = _LLAMA3.replace("TODAY", "strftime_now('%d %b %Y')")

LLAMA2 = """
{%- if messages[0]['role'] == 'system' %}
{%- set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- set content = system + message['content'] if loop.first else message['content'] %}
{%- if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}
{%- endfor %}
"""

# The tools stand before the last question; identifiers have nine characters; a call may not share a turn with words.
_MISTRAL = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}{%- set messages = messages[1:] %}
{%- endif %}
{%- set questions = messages | selectattr('role', 'equalto', 'user') | list %}
{%- set ns = namespace(index=0) %}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}
            {{- raise_exception('After the optional system message, roles must alternate user/assistant/...') }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- if tools is not none and tools and message == questions[-1] %}
            {{- '[AVAILABLE_TOOLS]B' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {%- if loop.last and system is defined %}
            {{- '[INST]B' + system + '\n\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST]B' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS]B[' }}
        {%- for call in message.tool_calls %}
            {%- set out = call.function | tojson %}
            {{- out[:-1] }}
            {%- if not call.id is defined or call.id | length != 9 %}
                {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
            {%- endif %}
            {{- ', "id": "' + call.id + '"}' + (', ' if not loop.last else ']' + eos_token) }}
        {%- endfor %}
    {%- elif message['role'] == 'assistant' %}
        {{- 'B' + message['content'] + eos_token }}
    {%- elif message['role'] == 'tool' %}
        {%- if not message.tool_call_id is defined or message.tool_call_id | length != 9 %}
            {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
        {%- endif %}
        {{- '[TOOL_RESULTS]B{"content": ' + message['content'] | string }}
        {{- ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported!') }}
    {%- endif %}
{%- endfor %}
"""
MISTRAL_V3 = _MISTRAL.replace("]B", "] ").replace("'B'", "' '")
NEMO = _MISTRAL.replace("]B", "]").replace("'B' + ", "")
_MISTRAL_TOKENS = (
    "<s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] "
    "[SYSTEM_PROMPT] [/SYSTEM_PROMPT] [ARGS] [CALL_ID] [TOOL_CONTENT]"
)

MISTRAL_SMALL = """
{%- set today = strftime_now('%Y-%m-%d') %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}{%- set messages = messages[1:] %}
{%- else %}
    {%- set system = 'You are Mistral Small 3. The current date is ' + today + '.' %}
{%- endif %}
{{- '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{- '[INST]' + message['content'] + '[/INST]' }}
    {%- elif message['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'assistant' %}{{- message['content'] + eos_token }}
    {%- else %}{{- raise_exception('Only user, system and assistant roles are supported!') }}{% endif %}
{%- endfor %}
"""

DEVSTRAL = """
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'user' %}
        {%- if tools and loop.last %}{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
        {{- '[INST]' + message['content'] + '[/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- message['content'] or '' }}
        {%- for call in message.tool_calls or [] %}
            {{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}
            {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message['role'] == 'tool' %}
        {{- '[TOOL_RESULTS]' + message['tool_call_id'] + '[TOOL_CONTENT]' + message['content'] + '[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}
"""

_ALTERNATES = """
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
"""
GEMMA2 = (
    """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{- raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}"""
    + _ALTERNATES
    + """
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}
"""
)
GEMMA3 = (
    """
{{- bos_token }}
{%- set first = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- if messages[0]['content'] is string %}{% set first = messages[0]['content'] + '\n\n' %}
    {%- else %}{% set first = messages[0]['content'][0]['text'] + '\n\n' %}{% endif %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}"""
    + _ALTERNATES
    + """
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}
{%- if message['content'] is string %}{{- message['content'] | trim }}
{%- else %}{{- raise_exception('Invalid content type') }}{% endif %}
{{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}
"""
)

PHI3 = """
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '<|end|>\n' }}
{%- elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}
{%- elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}
"""

PHI4_MINI = """
{%- for message in messages %}
{%- if message['role'] == 'system' and tools %}
{{- '<|system|>' + message['content'] + '<|tool|>' + tools | tojson + '<|/tool|><|end|>' }}
{%- else %}{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if tools and messages[0]['role'] != 'system' %}{{- '<|tool|>' + tools | tojson + '<|/tool|>' }}{% endif %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% else %}{{- eos_token }}{% endif %}
"""

ZEPHYR = """
{%- for message in messages %}
{%- if message['role'] == 'user' %}
{{- '<|user|>\n' + message['content'] + eos_token + '\n' }}
{%- elif message['role'] == 'system' %}
{{- '<|system|>\n' + message['content'] + eos_token + '\n' }}
{%- elif message['role'] == 'assistant' %}
{{- '<|assistant|>\n' + message['content'] + eos_token + '\n' }}
{%- endif %}
{%- if loop.last and add_generation_prompt %}{{- '<|assistant|>\n' }}{% endif %}
{%- endfor %}
"""

HERMES3 = {
    "default": CHATML.strip("\n"),
    "tool_use": """{{- bos_token }}{{- '<|im_start|>system\nYou call functions. Signatures: <tools> ' }}
{%- for tool in tools or [] %}{{- tool | tojson + ('\n' if not loop.last else '') }}{% endfor %}
{{- ' </tools>\nA call is a json object within tags:\n<tool_call>\n{"name": <function-name>, ' }}
{{- '"arguments": <args-dict>}\n</tool_call><|im_end|>\n' }}
{%- for message in messages %}
    {%- if message.role in ['user', 'system'] or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- for call in message.tool_calls %}
            {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if not messages[loop.index0 - 1].role == 'tool' %}{{- '<|im_start|>tool\n' }}{% endif %}
        {{- '<tool_response>\n' + message.content + ('\n</tool_response>' if loop.last else '\n</tool_response>\n') }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}""",
}


def _deepseek(text: str) -> str:
    """Its tokens have bars of their own, and blanks as U+2581."""
    return re.sub(r"<\|(\w+)\|>", lambda token: f"<\uff5c{token[1].replace('_', chr(0x2581))}\uff5c>", text)


_DEEPSEEK_TOKENS = _deepseek(
    "<|begin_of_sentence|> <|end_of_sentence|> <|User|> <|Assistant|> <|tool_calls_begin|> <|tool_calls_end|> "
    "<|tool_call_begin|> <|tool_call_end|> <|tool_sep|> <|tool_outputs_begin|> <|tool_outputs_end|> "
    "<|tool_output_begin|> <|tool_output_end|>"
)
# It shows no tools; only the first result of a conversation opens the list of results.
DEEPSEEK_V3 = _deepseek("""
{%- set ns = namespace(system='', results=false, fresh=true) %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{% set ns.system = ns.system + message['content'] %}{% endif %}
{%- endfor %}
{{- bos_token + ns.system }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{% set ns.results = false %}{{- '<|User|>' + message['content'] }}{% endif %}
    {%- if message['role'] == 'assistant' and message['content'] is none %}
        {{- '<|Assistant|><|tool_calls_begin|>' }}
        {%- for call in message['tool_calls'] %}
            {{- '<|tool_call_begin|>' + call['type'] + '<|tool_sep|>' + call['function']['name'] }}
            {{- '\n```json\n' + call['function']['arguments'] + '\n```<|tool_call_end|>' }}
        {%- endfor %}
        {{- '<|tool_calls_end|><|end_of_sentence|>' }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|tool_outputs_end|>' if ns.results else '<|Assistant|>' }}
        {{- message['content'] + '<|end_of_sentence|>' }}{% set ns.results = false %}
    {%- elif message['role'] == 'tool' %}
        {%- set ns.results = true %}
        {{- '<|tool_outputs_begin|>' if ns.fresh else '\n' }}{% set ns.fresh = false %}
        {{- '<|tool_output_begin|>' + message['content'] + '<|tool_output_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if ns.results %}{{- '<|tool_outputs_end|>' }}
{%- elif add_generation_prompt %}{{- '<|Assistant|>' }}{% endif %}
""")
# The same of version 3.1, with the switch: the assistant's turn begins behind an opened or a closed thought.
DEEPSEEK_V3_1 = _deepseek("""
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{{- message['content'] }}
    {%- elif message['role'] == 'user' %}{{- '<|User|>' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|Assistant|></think>' + message['content'].split('</think>')[-1] + '<|end_of_sentence|>' }}
    {%- elif message['role'] == 'tool' %}
        {{- '<|tool_output_begin|>' + message['content'] + '<|tool_output_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|Assistant|>' + ('<think>' if thinking is defined and thinking else '</think>') }}
{%- endif %}
""")

GLM4_5 = """
{{- '[gMASK]<sop>' }}
{%- if tools %}
    {{- '<|system|>\n# Tools\n\n<tools>\n' }}
    {%- for tool in tools %}{{- tool | tojson + '\n' }}{% endfor %}
    {{- '</tools>\n\nA call reads:\n<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n' }}
    {{- '<arg_value>{arg-value-1}</arg_value>\n</tool_call>' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {{- '<|user|>\n' + m.content }}
        {{- '/nothink' if enable_thinking is defined and not enable_thinking else '' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|assistant|>\n<think></think>' }}
        {%- if m.content %}{{- '\n' + m.content.strip() }}{% endif %}
        {%- for call in m.tool_calls or [] %}
            {{- '\n<tool_call>' + call.function.name + '\n' }}
            {%- for k, v in call.function.arguments.items() %}
                {{- '<arg_key>' + k + '</arg_key>\n<arg_value>' + (v if v is string else v | tojson) }}
                {{- '</arg_value>\n' }}
            {%- endfor %}
            {{- '</tool_call>' }}
        {%- endfor %}
    {%- elif m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|observation|>' }}{% endif %}
        {{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
    {%- elif m.role == 'system' %}
        {{- '<|system|>\n' + m.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' + ('\n<think></think>' if enable_thinking is defined and not enable_thinking else '') }}
{%- endif %}
"""

LFM2 = """
{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] %}{%- set messages = messages[1:] %}
{%- endif %}
{%- if tools %}
    {%- set ns.system = ns.system + ('\n' if ns.system else '') + 'List of tools: <|tool_list_start|>[' %}
    {%- for tool in tools %}
        {%- set ns.system = ns.system + tool | tojson + (', ' if not loop.last else '') %}
    {%- endfor %}
    {%- set ns.system = ns.system + ']<|tool_list_end|>' %}
{%- endif %}
{%- if ns.system %}{{- '<|im_start|>system\n' + ns.system + '<|im_end|>\n' }}{% endif %}
{%- for message in messages %}
    {%- set content = message['content'] if message['content'] is string else message['content'] | tojson %}
    {%- if message['role'] == 'tool' %}
        {%- set content = '<|tool_response_start|>' + content + '<|tool_response_end|>' %}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}
"""

NEMOTRON = """
{{- bos_token }}
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else 'detailed thinking on' %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' + system }}
{%- if tools %}
    {{- '\n\n<AVAILABLE_TOOLS>[' }}
    {%- for t in tools %}{{- t | tojson + (', ' if not loop.last else '') }}{% endfor %}
    {{- ']</AVAILABLE_TOOLS>\n\nUse them so: <TOOLCALL>[{"name": "tool_name1", "arguments": {"a": "b"}}]</TOOLCALL>' }}
{%- endif %}
{{- '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '<|start_header_id|>user<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' + (message['content'] or '') }}
        {%- if message.tool_calls %}
            {{- '<TOOLCALL>[' }}
            {%- for call in message.tool_calls %}
                {{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}' }}
            {%- endfor %}
            {{- ']</TOOLCALL>' }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- elif message['role'] == 'tool' %}
        {{- '<|start_header_id|>user<|end_header_id|>\n\n<TOOL_RESPONSE>[' + message['content'] + ']</TOOL_RESPONSE>' }}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
"""

GPT_OSS = """
{{- '<|start|>system<|message|>You are ChatGPT.\nCurrent date: ' + strftime_now('%Y-%m-%d') }}
{{- '\n\nReasoning: ' + (reasoning_effort or 'medium') + '\n\n# Valid channels: analysis, commentary, final.<|end|>' }}
{%- set system = messages[0].content if messages[0].role in ['developer', 'system'] else '' %}
{%- if system or tools %}
    {{- '<|start|>developer<|message|># Instructions\n\n' + system }}
    {%- if tools %}
        {{- '\n\n# Tools\n\n## functions\n\nnamespace functions {\n' }}
        {%- for tool in tools %}
            {{- '// ' + tool.function.description + '\ntype ' + tool.function.name + ' = (_: any) => any;\n' }}
        {%- endfor %}
        {{- '} // namespace functions' }}
    {%- endif %}
    {{- '<|end|>' }}
{%- endif %}
{%- set last = namespace(name=none) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '<|start|>user<|message|>' + message.content + '<|end|>' }}
    {%- elif message.role == 'assistant' and message.tool_calls %}
        {%- set call = message.tool_calls[0].function %}{%- set last.name = call.name %}
        {{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
        {{- call.arguments | tojson + '<|call|>' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}
        {{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}
    {%- elif message.role == 'tool' %}
        {%- if last.name is none %}
            {{- raise_exception('Message has tool role, but there was no previous message with a tool call!') }}
        {%- endif %}
        {{- '<|start|>functions.' + last.name + ' to=assistant<|channel|>commentary<|message|>' }}
        {{- message.content | tojson + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}
"""

# Schemas as Python writes them; calls are words to it, in the form that its own words teach.
SMOLLM3 = """
{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{%- set mode = '/think' if enable_thinking else '/no_think' %}
{{- '<|im_start|>system\n## Metadata\n\nToday Date: ' + strftime_now('%d %B %Y') + '\nReasoning Mode: ' + mode }}
{{- '\n\n## Custom Instructions\n\n' }}
{%- if messages[0].role == 'system' %}
    {{- messages[0].content.replace('/no_think', '').replace('/think', '').rstrip() + '\n\n' }}
{%- endif %}
{%- if tools %}
    {{- '### Tools\n\nSignatures within <tools></tools>:\n\n<tools>\n' }}
    {%- for tool in tools[:] %}{{- tool | string + '\n' }}{% endfor %}
    {{- '</tools>\n\nFor each call, a json object within <tool_call></tool_call> tags:\n<tool_call>\n' }}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' }}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- set empty = '' if enable_thinking else '<think>\n\n</think>\n' %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' %}{{- '<|im_start|>user\n' + content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {%- generation %}
        {{- '<|im_start|>assistant\n' + empty + content.lstrip('\n') + '<|im_end|>\n' }}
        {%- endgeneration %}
    {%- elif message.role == 'tool' %}{{- '<|im_start|>user\n' + content + '<|im_end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' + empty }}{% endif %}
"""

GRANITE = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}{%- set messages = messages[1:] %}
{%- else %}
    {%- set system = 'You are Granite. Today is ' + strftime_now('%B %d, %Y') + '.' %}
    {%- if thinking %}{% set system = system + ' Think before you answer.' %}{% endif %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\n' }}
{%- if tools %}
    {{- '<|start_of_role|>tools<|end_of_role|>' + tools | tojson(indent=4) + '<|end_of_text|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set role = 'tool_response' if message['role'] == 'tool' else message['role'] %}
    {{- '<|start_of_role|>' + role + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}
"""

NO_FORMAT = "teaches a format of tool calls that no parser reads"

CASES = {
    "ChatML": Case(CHATML, _IM, "<|im_end|>", "hermes", listed=True),
    "SmolLM2": Case(SMOLLM2, _IM, "<|im_end|>", "hermes", bos="<|im_start|>", listed=True),
    "Qwen2.5": Case(QWEN2_5, _IM, "<|im_end|>", "hermes", added=_CALL_TAGS),
    "Qwen3": Case(QWEN3, _IM, "<|im_end|>", "hermes", added=f"{_CALL_TAGS} {_THINK_TAGS}"),
    "Qwen3, not thinking": Case(
        QWEN3, _IM, "<|im_end|>", "hermes", added=f"{_CALL_TAGS} {_THINK_TAGS}", options={"thinking": False},
        keeps=False,
    ),
    "Qwen3-Thinking": Case(
        QWEN3_THINKING, _IM, "<|im_end|>", "hermes", added=f"{_CALL_TAGS} {_THINK_TAGS}", keeps=False
    ),
    "Qwen3-Coder": Case(QWEN3_CODER, _IM, "<|im_end|>", "qwen3_coder", added=_CALL_TAGS),
    "Qwen3.5": Case(QWEN3_5, _IM, "<|im_end|>", "qwen3_coder", added=f"{_CALL_TAGS} {_THINK_TAGS}", keeps=False),
    "Qwen3.5, not thinking": Case(
        QWEN3_5, _IM, "<|im_end|>", "qwen3_coder", added=f"{_CALL_TAGS} {_THINK_TAGS}", options={"thinking": False}
    ),
    "Llama-3.1": Case(LLAMA3_1, _LLAMA, "<|eot_id|>", "llama3", bos="<|begin_of_text|>"),
    "Llama-3.2": Case(LLAMA3_2, _LLAMA, "<|end_of_text|>", "llama3", bos="<|begin_of_text|>", ends="<|eot_id|>"),
    "Llama-2": Case(
        LLAMA2, "<s> </s>", "</s>", "hermes", bos="<s>", kind="prepend", listed=True, results="user"
    ),
    "Mistral-7B-v0.3": Case(MISTRAL_V3, _MISTRAL_TOKENS, "</s>", "mistral", bos="<s>", kind="first", keeps=False),
    "Mistral-Nemo": Case(NEMO, _MISTRAL_TOKENS, "</s>", "mistral", bos="<s>", keeps=False),
    "Mistral-Small": Case(
        MISTRAL_SMALL, _MISTRAL_TOKENS, "</s>", "hermes", bos="<s>", listed=True, results="user"
    ),
    "Devstral": Case(DEVSTRAL, _MISTRAL_TOKENS, "</s>", "mistral", bos="<s>", keeps=False),
    "Gemma-2": Case(
        GEMMA2, "<bos> <eos> <start_of_turn> <end_of_turn>", "<eos>", "hermes", bos="<bos>", kind="never",
        listed=True, system=False, results="user", ends="<end_of_turn>",
    ),
    "Gemma-3": Case(
        GEMMA3, "<bos> <eos> <start_of_turn> <end_of_turn>", "<end_of_turn>", "hermes", bos="<bos>", kind="never",
        listed=True, results="user",
    ),
    "Phi-3": Case(
        PHI3, "<s> <|endoftext|> <|system|> <|user|> <|assistant|> <|end|>", "<|endoftext|>", "hermes", bos="<s>",
        kind="first", listed=True, results="user", ends="<|end|>", strips="<|system|> <|user|> <|assistant|> <|end|>",
    ),
    "Phi-4-mini": Case(
        PHI4_MINI, "<|endoftext|> <|system|> <|user|> <|assistant|> <|end|> <|tool|> <|/tool|> <|tool_call|>",
        "<|endoftext|>", refused=NO_FORMAT,
    ),
    "Zephyr": Case(ZEPHYR, "<s> </s>", "</s>", "hermes", bos="<s>", kind="first", listed=True, results="user"),
    "Hermes-3": Case(HERMES3, _IM, "<|im_end|>", "hermes", bos="<|endoftext|>", keeps=False),
    "DeepSeek-V3": Case(
        DEEPSEEK_V3, _DEEPSEEK_TOKENS, _deepseek("<|end_of_sentence|>"), "hermes",
        bos=_deepseek("<|begin_of_sentence|>"), listed=True, keeps=False,
    ),
    "DeepSeek-V3.1, thinking": Case(
        DEEPSEEK_V3_1, f"{_DEEPSEEK_TOKENS} {_THINK_TAGS}", _deepseek("<|end_of_sentence|>"), "hermes",
        bos=_deepseek("<|begin_of_sentence|>"), listed=True, options={"thinking": True}, keeps=False,
    ),
    "GLM-4.5": Case(
        GLM4_5, "<|endoftext|> [gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|>", "<|endoftext|>",
        added=f"{_CALL_TAGS} {_THINK_TAGS}", refused=NO_FORMAT,
    ),
    "LFM2": Case(
        LFM2, f"{_IM} <|tool_list_start|> <|tool_list_end|> <|tool_call_start|> <|tool_call_end|>", "<|im_end|>",
        bos="<|endoftext|>", refused=NO_FORMAT,
    ),
    "Nemotron": Case(NEMOTRON, _LLAMA, "<|eot_id|>", bos="<|begin_of_text|>", refused=NO_FORMAT),
    "gpt-oss": Case(
        GPT_OSS, "<|endoftext|> <|return|> <|start|> <|end|> <|message|> <|channel|> <|call|>", "<|return|>",
        refused=NO_FORMAT,
    ),
    "SmolLM3": Case(SMOLLM3, _IM, "<|im_end|>", "hermes", added=f"{_CALL_TAGS} {_THINK_TAGS}"),
    "SmolLM3, not thinking": Case(
        SMOLLM3, _IM, "<|im_end|>", "hermes", added=f"{_CALL_TAGS} {_THINK_TAGS}", options={"thinking": False}
    ),
    "Granite": Case(
        GRANITE, "<|end_of_text|> <|start_of_role|> <|end_of_role|> <|tool_call|>", "<|end_of_text|>", refused=NO_FORMAT
    ),
}  # fmt: skip
