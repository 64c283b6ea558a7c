"""Chat templates of many kinds, and conversations to render with them."""

from itertools import groupby

TURN = "<|im_start|>{{ m.role }}\n{{ c }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
EACH = "{% for m in messages %}{% set c = m.content %}"
FORGETFUL = (
    EACH + "{% if m.role == 'assistant' and not loop.last %}"
    "{% set c = m.content.split('</think>')[-1] | trim %}{% endif %}"
)
STRIPS_THINKING = FORGETFUL + TURN + PROMPT
MARKED = (
    FORGETFUL + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ c }}{% endgeneration %}{% else %}{{ c }}{% endif %}<|im_end|>\n{% endfor %}"
) + PROMPT
DROPS_SYSTEM = EACH.replace("messages", "messages if m.role != 'system'") + TURN + PROMPT
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system role here') }}{% endif %}"
    + EACH + TURN + PROMPT
)  # fmt: skip
CLOSES = EACH + TURN + "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}"
CLOSES += "<|endoftext|>{% endif %}"
NO_END = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}"
NO_END += "{% if add_generation_prompt %}assistant:\n{% endif %}"
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CALLS = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for t in m.tool_calls %}"
    "<tool_call>{{ t.function.name }}({{ t.function.arguments | tojson }})</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
) + PROMPT
ALL_MARKED = FORGETFUL.replace("{% for", "{% generation %}{% for", 1) + TURN + "{% endgeneration %}"
MOVES_SYSTEM = (
    "{% set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
    "[INST] {{ system if loop.last }}{{ m.content }}[/INST]"
    "{% elif m.tool_calls %} CALLS{% for t in m.tool_calls %} {{ t.function | tojson }}{% endfor %}"
    "{{ eos_token }}{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""As Mistral's: the system message is rendered in a last user message only."""

_SAID = (
    EACH + "{% if m.role == 'assistant' %}{% set c = m.content.split('</think>')[-1] %}{% endif %}"
)
OPENS_REASONING = _SAID + TURN + PROMPT.replace("{% endif", "<think>\n{% endif")
"""As DeepSeek-R1's and QwQ's: the prompt opens the reasoning; it is rendered nowhere else."""

REMOVES_REASONING = _SAID + TURN + PROMPT
OWN_REASONING = (
    "{% set place = namespace(asked=0) %}{% for m in messages if m.role == 'user' %}"
    "{% set place.asked = messages.index(m) %}{% endfor %}"
    + EACH
    + "{% if m.role == 'assistant' %}"
    "{% set thought = m.reasoning_content or '' %}{% if '</think>' in c %}"
    "{% set thought = c.split('</think>')[0].split('<think>')[-1] | trim %}"
    "{% set c = c.split('</think>')[-1] | trim %}{% endif %}"
    "{% if loop.last and loop.index0 > place.asked %}"
    "{% set c = '<think>\n' + thought + '\n</think>\n\n' + c %}{% endif %}{% endif %}"
) + TURN
MAY_THINK = OWN_REASONING + PROMPT.replace(
    "{% endif",
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif",
)
"""As Qwen3's: the last answer is rendered with its reasoning, which may be empty."""

MUST_THINK = OWN_REASONING + PROMPT.replace("{% endif", "<think>\n{% endif")
NONE_MARKED = STRIPS_THINKING + "{% if false %}{% generation %}{% endgeneration %}{% endif %}"

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "What is 2 + 2?"}
SAY = {"role": "assistant", "content": "It is 4, naturally. 👍🏽"}
MORE = {"role": "user", "content": "And 3 + 3 ?"}
LAST = {"role": "assistant", "content": "6"}
TALK = [SYSTEM, ASK, SAY, MORE, LAST]
REASONED = [ASK, {"role": "assistant", "content": "<think>two twos</think>\n\nFour."}, MORE, LAST]
SIX = {"role": "assistant", "content": "<think>\nthree twos\n</think>\n\nSix."}
BESIDE = {"role": "assistant", "content": "Six.", "reasoning_content": "three twos"}
CALL = {
    "role": "assistant",
    "tool_calls": [
        {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "why": 'say "so"'}}}
    ],
}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def masked_runs(tokenizer, encoded):
    """Runs of equal loss mask, each with its text."""
    found, place = [], 0
    for flag, run in groupby(encoded.loss_mask):
        count = len(list(run))
        found.append((flag, tokenizer.decode(encoded.ids[place : place + count])))
        place += count
    return found


def target_texts(tokenizer, encoded):
    """The runs of target tokens, as text."""
    return [text for flag, text in masked_runs(tokenizer, encoded) if flag]
