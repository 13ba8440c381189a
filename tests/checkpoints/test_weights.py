"""What opening a model does not cost."""

import subprocess
import sys


def test_opening_a_class_conditional_model_imports_no_compiler():
    code = "import sys, ddim; ddim.load('mnist-cond'); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
