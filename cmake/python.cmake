# The Python that the modules are for, and a way to ask it questions.
include_guard()
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)

# Sets `result` to the printed answer, or to "" when the question fails, as an import may.
function(sift_ask_python result question)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "${question}"
    OUTPUT_VARIABLE answer OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(failed)
    set(answer "")
  endif()
  set(${result} "${answer}" PARENT_SCOPE)
endfunction()
