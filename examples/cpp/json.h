// A strict reader of JSON, as much of it as a model's files need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace example {

// A JSON value. The named getters read a member of an object and throw std::runtime_error with one
// sentence where it is missing or of another kind.
class Json {
 public:
  struct Member;
  using Array = std::vector<Json>;
  using Object = std::vector<Member>;

  // Throws std::runtime_error for anything that is not exactly one JSON value.
  static Json parse(std::string_view text);

  Json() = default;
  template <class T>
  explicit Json(T value) : value_(std::move(value)) {}

  // nullptr where the value is of another kind.
  template <class T>
  const T* get_if() const {
    return std::get_if<T>(&value_);
  }

  // nullptr where there is none; null counts as none.
  const Json* find(std::string_view key) const;

  double number(std::string_view key) const;
  int64_t integer(std::string_view key) const;  // from 0 up
  bool boolean(std::string_view key, bool otherwise) const;
  const std::string& string(std::string_view key) const;
  const Json& object(std::string_view key) const;
  std::vector<int64_t> integers(std::string_view key) const;  // from 0 up

 private:
  template <class T>
  const T& required(std::string_view key, const char* kind) const;

  std::variant<std::nullptr_t, bool, double, std::string, Array, Object> value_ = nullptr;
};

struct Json::Member {
  std::string key;
  Json value;
};

}  // namespace example
