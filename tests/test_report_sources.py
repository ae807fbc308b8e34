from companion.report import source
from robust_features.bottleneck import Distillation, information_loss


def test_the_source_of_functions_and_methods_is_shown_as_code_after_their_module():
    shown = source(information_loss, Distillation.split).data
    assert shown.startswith("```python\n# robust_features.bottleneck\ndef information_loss(") and shown.endswith(
        "\n```"
    )
    assert "\n\n# robust_features.bottleneck\ndef split(self" in shown, "not indented as in its class"
